"""The stage that starts a server so that it fills what is left."""
