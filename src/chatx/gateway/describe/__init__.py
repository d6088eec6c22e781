"""The wire as an AsyncAPI document, made of the types."""
