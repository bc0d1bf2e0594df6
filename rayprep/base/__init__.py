"""Ground floor of all rooms: records, errors, text, secrets, numbers for people. Imports nothing of ours."""
