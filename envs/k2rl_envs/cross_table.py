"""Cross-table questions: look rows of one table up in others, and add up.

Levels (customers, products, orders; what is asked):

    1  two customers, three products, 3 orders; the bill of a customer, over orders and prices
    2  three customers, four products, 6 orders; as level 1
    3  four customers, five products, 8 orders; the bills of a town, over orders, prices and customers
    4  six customers, six products, 12 orders; as level 3
    5  eight customers, eight products, 20 orders; a town's bills, the products of one maker only
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from k2rl_rewards.puzzle import ShortAnswer

from k2rl_envs.generated import GeneratedGame, Puzzle, some, words

CUSTOMERS = words(
    "Adler Baker Brandt Costa Diaz Evans Fischer Garcia Hansen Ito Jansen Keller Lopez Meyer Novak Olsen Patel Reyes "
    "Rossi Santos Silva Tanaka Weber Yilmaz"
)
PRODUCTS = words(
    "basket blanket bowl brush chair clock cup curtain desk fan fork hammer jar kettle ladder lamp mirror pan pillow "
    "plate rope rug shelf spoon table tray vase whisk"
)
TOWNS = ("Ashby", "Bruck", "Cadiz", "Delft", "Elm", "Fulda")
MAKERS = ("Arco", "Bolt", "Cresta", "Dune")
LEVELS = {1: (2, 3, 3), 2: (3, 4, 6), 3: (4, 5, 8), 4: (6, 6, 12), 5: (8, 8, 20)}


class CrossTableGame(GeneratedGame):
    """Questions that need rows of two or three tables; the answer is a sum of products."""

    name = "cross_table"
    levels = LEVELS
    default_level = 2
    default_instruction = 'Work step by step. End with a line "#### number", where number is the answer alone.'
    reward = ShortAnswer()

    def puzzle(self, level: int, draw: np.random.Generator) -> Puzzle | None:
        n_customers, n_products, n_orders = self.levels[level]
        by_town, by_maker = level >= 3, level >= 5
        customers, products = some(CUSTOMERS, n_customers, draw), some(PRODUCTS, n_products, draw)
        # Few towns and makers, so that several customers and products share one.
        towns, makers = some(TOWNS, 2 if level < 5 else 3, draw), some(MAKERS, 2, draw)
        town = {c: towns[int(draw.integers(len(towns)))] for c in customers}
        maker = {p: makers[int(draw.integers(len(makers)))] for p in products}
        price = {p: int(draw.integers(2, 10 if level == 1 else 50)) for p in products}
        orders = [
            (customers[int(c)], products[int(p)], int(n))
            for c, p, n in zip(
                draw.integers(n_customers, size=n_orders),
                draw.integers(n_products, size=n_orders),
                draw.integers(2, 10, size=n_orders),
                strict=True,
            )
        ]
        wanted = town[customers[0]] if by_town else customers[0]
        bill = [
            (n, price[p])
            for c, p, n in orders
            if wanted == (town[c] if by_town else c) and (not by_maker or maker[p] == makers[0])
        ]
        if not bill:
            return None
        columns, rows = ("product", "price"), [(p, price[p]) for p in products]
        tables = [_table("Orders", ("customer", "product", "quantity"), orders)]
        if by_maker:
            tables.append(_table("Products", (*columns, "maker"), [(p, n, maker[p]) for p, n in rows]))
        else:
            tables.append(_table("Products", columns, rows))
        if by_town:
            tables.append(_table("Customers", ("customer", "town"), town.items()))
        who = f"the customers from {wanted}" if by_town else wanted
        what = f"products made by {makers[0]}" if by_maker else "products"
        question = "\n\n".join([*tables, f"How much do all the {what} that {who} ordered cost together?"])
        answer = str(sum(n * cost for n, cost in bill))
        terms = " ".join(f"{n}*{cost}={n * cost}" for n, cost in bill)
        total = f" {'+'.join(str(n * cost) for n, cost in bill)}={answer}" if len(bill) > 1 else ""
        return Puzzle(question, answer, question, {"answer": answer}, terms + total)


def _table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [f"| {' | '.join(map(str, row))} |" for row in (columns, ["---"] * len(columns), *rows)]
    return "\n".join([f"{title}:", *lines])
