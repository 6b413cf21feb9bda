"""The relaxed training problem: dual points chosen together with the multipliers that bound their dual norm."""
