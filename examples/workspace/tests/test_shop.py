"""Tests of the shop."""

import unittest

from src.shop import total

PRICES = {"apple": 30, "bread": 250}


class TotalTest(unittest.TestCase):
    """What a basket costs."""

    def test_one_of_each(self) -> None:
        """One of each costs the sum of the prices."""
        self.assertEqual(total({"apple": 1, "bread": 1}, PRICES), 280)

    def test_several_of_one(self) -> None:
        """Three apples cost three times as much as one."""
        self.assertEqual(total({"apple": 3}, PRICES), 90)


if __name__ == "__main__":
    unittest.main()
