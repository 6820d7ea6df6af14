"""Assignment -> a GGUF file, for llama.cpp and Ollama."""

from mpq.backends.gguf.target import Gguf

__all__ = ["Gguf"]
