"""What every room builds on: records and their files, errors, text, secrets, numbers for people. Imports nothing of ours."""
