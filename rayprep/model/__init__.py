"""What is asked and what is answered: frozen pydantic models and the pure decisions over them."""
