"""The parts of a chat model in this process: what it reads (`prompt`), remembers (`memory`), writes (`markup`)."""
