"""All that rayprep knows of SGLang and its kernel libraries, each fact with its source. Pure."""
