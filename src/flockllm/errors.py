"""Everything this package raises on purpose.

FlockError
├── InvalidSpec        a task file or definition breaks the schema   → fix the named key
├── InvalidConfig      settings of this machine do not fit           → fix the named setting
├── InvalidData        a data file breaks the format                 → fix the named line
├── InvalidUpdate      a stranger's bytes are not an update          → score it INVALID
├── StoreError         content altered, or a store refuses           → retry, then another store
│   └── NotFound       no store has the content                      → wait, or add a store
├── ChainError         the chain refused, or is out of reach         → look again, decide again
│   └── Reverted       the contract refused a call, and why          → look again, decide again
├── AuditFailed        a task's record breaks the rules              → do not trust its adapter
├── ModelError         base model or adapter cannot be used          → another folder, or install
└── SandboxError       a stranger's code failed or overstepped       → score it INVALID
"""


class FlockError(Exception):
    """Base of every error a caller may want to catch; the message says what to do next."""


class InvalidSpec(FlockError):
    """A task file or definition that breaks the schema."""


class InvalidConfig(FlockError):
    """Settings of this machine that cannot work: a key file, a URL, a folder."""


class InvalidData(FlockError):
    """A data file that is not records as documented."""


class InvalidUpdate(FlockError):
    """Bytes that are not the update, or adapter, the task asked for."""


class StoreError(FlockError):
    """Content that was altered, or a store that refuses or is out of reach."""


class NotFound(StoreError):
    """Content that no store has, as far as was asked."""


class ChainError(FlockError):
    """The chain refused a transaction, or its node is out of reach."""


class Reverted(ChainError):
    """The contract refused a call; the message is the contract's reason."""


class AuditFailed(FlockError):
    """What a task's chain and store say does not follow from the rules; names the first fault."""


class ModelError(FlockError):
    """A base model, tokenizer or adapter that cannot be loaded or does not fit the task."""


class SandboxError(FlockError):
    """Own model code that failed, timed out or overstepped its limits."""
