"""The trained model at work: an OpenAI-compatible API, and a page that compares it with its base.

The way of a request: `gate` (who may) → `api` (HTTP) → `wire` (OpenAI's JSON ⇄ what is asked) →
`prompts` (messages → tokens) → `engine` (the queue, and one thread) → `batch` (many rows, one
copy of the weights) → `decoding` (which token comes next) → `text` (tokens → text, stop
sequences). `sources` says what is hosted, `page` is a client of the API, `serve` puts all
together. Importing this package loads nothing.
"""
