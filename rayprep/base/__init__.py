"""What every room builds on: records, errors, text, secrets, numbers for people. Imports nothing of ours."""
