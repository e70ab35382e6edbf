"""Which layer a kind of memory is."""

from umscale.errors import UserError
from umscale.layers.memory import Memory
from umscale.layers.product_key import ProductKeyMemory
from umscale.layers.tucker import TuckerMemory
from umscale.spec import ADDITIVE_KINDS, MemorySpec


def memory_class(memory: MemorySpec) -> type[Memory]:
    """Return the class of the memory layers that ``memory`` asks for.

    Raises:
        UserError: of a package that is not installed here, or whose part names no ``Memory``.
    """
    if (own := memory.own) is None:
        return ProductKeyMemory if memory.kind in ADDITIVE_KINDS else TuckerMemory
    if not (isinstance(own.layer, type) and issubclass(own.layer, Memory)):
        raise UserError(
            f"memory {memory.kind!r} of {memory.package}: its layer is no subclass of umscale.layers.memory.Memory"
        )
    return own.layer
