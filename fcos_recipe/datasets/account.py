"""The account of a conversion, merge, split or subset: what came in is written or left out.

What came in is counted in the raw input (files in a folder, lines, objects, entries), by other code
than the code that converts it. So an item that a reader passes over shows as a difference.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from fcos_recipe.errors import UserError


@dataclass
class Account:
    """Numbers of images, label files, boxes and other items on their way into a COCO file."""

    seen: Counter[str] = field(default_factory=Counter)  #: item -> number in the input
    written: Counter[str] = field(default_factory=Counter)  #: item -> number in the output
    left_out: Counter[tuple[str, str]] = field(default_factory=Counter)  #: (item, reason) -> number

    def leave_out(self, item: str, reason: str, count: int = 1) -> None:
        if count:
            self.left_out[item, reason] += count

    def add(self, other: "Account") -> None:
        """Add another account, such as that of the next split."""
        self.seen += other.seen
        self.written += other.written
        self.left_out += other.left_out

    def then(self, later: "Account") -> "Account":
        """The account of two steps, of which `later` takes what this one has written.

        What a conversion calls boxes are annotations in its COCO file.
        """
        named = {"boxes": "annotations"}
        first = Account()
        for mine, into in ((self.seen, first.seen), (self.written, first.written)):
            into.update({named.get(item, item): n for item, n in mine.items()})
        first.left_out.update({(named.get(i, i), why): n for (i, why), n in self.left_out.items()})
        both = Account(first.seen + later.seen, first.written + later.written)
        both.left_out = first.left_out + later.left_out
        for item in later.seen:  # what was written is seen again
            both.seen[item] -= first.written[item]
            both.written[item] -= first.written[item]
        return both

    def rows(self) -> list[dict[str, Any]]:
        """One row per item, JSON-ready: item, seen, written, and left_out (reason -> number)."""
        known = [*self.seen.items(), *self.written.items()]
        items = dict.fromkeys([item for item, n in known if n] + [i for i, _ in self.left_out])
        return [
            {
                "item": item, "seen": self.seen[item], "written": self.written[item],
                "left_out": {why: n for (of, why), n in self.left_out.items() if of == item},
            }
            for item in items
        ]  # fmt: skip

    def check(self, source: Any) -> None:
        """Check that every item is written or left out for a reason.

        Raises:
            UserError: an item is missing, or is written more often than it came in.
        """
        for row in self.rows():
            missing = row["seen"] - row["written"] - sum(row["left_out"].values())
            if missing:
                raise UserError(
                    f"{source}: {row['seen']} {row['item']} came in, but {row['written']} would be "
                    f"written and {sum(row['left_out'].values())} left out for a known reason; "
                    "nothing is written. The reader does not know this form of the data: please "
                    "report it with an example"
                )

    def lines(self) -> list[str]:
        """The account as a table for the console."""
        return table_lines(self.rows())


def table_lines(rows: list[dict[str, Any]]) -> list[str]:
    """Rows of `Account.rows` as a table for the console."""
    table = [("", "seen", "written", "left out")]
    for row in rows:
        why = "; ".join(f"{n} {reason}" for reason, n in row["left_out"].items())
        last = f"{sum(row['left_out'].values())}" + (f" ({why})" if why else "")
        table.append((row["item"], str(row["seen"]), str(row["written"]), last))
    wide = [max(len(line[k]) for line in table) for k in range(3)]
    return [
        f"  {a:<{wide[0]}}  {b:>{wide[1]}}  {c:>{wide[2]}}  {d}".rstrip() for a, b, c, d in table
    ]
