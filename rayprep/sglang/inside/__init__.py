"""What asks SGLang itself, in child processes that import it. Nothing else imports these modules."""
