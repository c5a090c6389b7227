"""The HTTP server: OpenAI's chat-completions wire format in front of one engine."""
