"""Questions about a long document, answered by a model on one KV cache: `lrsa generate` and `lrsa chat`."""

from lrsa_lightning.conversation.conversation import Answer, Conversation
from lrsa_lightning.conversation.sampling import Sampling
from lrsa_lightning.conversation.turns import Turns

__all__ = ["Answer", "Conversation", "Sampling", "Turns"]
