"""One SGLang server: its start, its memory, its log, the requests that it is sent, its end."""
