"""What a fleet is asked and answers, and the decisions over its hosts. Pure."""
