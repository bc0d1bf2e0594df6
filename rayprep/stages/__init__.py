"""The stages, behind one small protocol (`protocol`); `table` names them all.

Heavy libraries are imported in child processes alone, and a child imports no stage but its own.
"""
