"""What a device can do."""

import torch


def has_bfloat16_products(device_type: str) -> bool:
    """Whether matrix products in bfloat16 are faster than in float32 there; a CPU without them makes them up, many times slower."""
    if device_type != "cpu":
        return True
    able = torch.cpu.get_capabilities()
    return any(able.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"))
