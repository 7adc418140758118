"""What a basket costs."""


def total(basket: dict[str, int], prices: dict[str, int]) -> int:
    """Return what the basket costs, in cents: its keys are goods, its values how many."""
    return sum(prices[item] for item in basket)
