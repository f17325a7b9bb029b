"""Prompts as data: those of Tables 1 and 2, in the authors' wording and as the paper prints them (D18).

A user prompt is, item by item, `head title [HistoryEmb]`, then an outro and [UserOut]; in (c) all that follows a lead and
[UserRep]; in (a) there is no [HistoryEmb]. An item prompt is `intro title [HistoryEmb] outro [ItemOut]`. What stands after an Out slot cannot reach it (causal attention) and is left out.
Where a title is asked for (Table 1), the history is followed by `choose`, candidates `title [HistoryEmb]` and `ask`. The authors'
code has no such prompts: what is said there is the paper's, in either wording.
"""

from dataclasses import dataclass, replace

import numpy as np

DAY_MS = 86_400_000
USER_SLOT, ITEM_SLOT, HISTORY_SLOT = "[UserOut]", "[ItemOut]", "[HistoryEmb]"
USER_REPR_SLOT = "[UserRep]"
SPECIAL = (
    "[PAD]",
    "</s>",
    USER_REPR_SLOT,
    HISTORY_SLOT,
    USER_SLOT,
    ITEM_SLOT,
    "[CLS]",
)  # authors' order


@dataclass(frozen=True)
class Template:
    """Literal pieces. `title` starts with a space: the place where most tokenizers can be cut."""

    user_intro: str
    head: str  # of one history item; fields {number} and {date}
    title: str  # field {title}
    close: str  # after an item's slot
    separator: str  # between items
    user_outro: str
    item_intro: str
    item_outro: str
    date_separator: str
    choose: str  # between the last slot of a history and the first candidate
    ask: str  # behind the last candidate
    lead: str = ""  # of user prompts, before [UserRep]; '' = they have neither

    def opening(self, number: int, date: str, *, first: bool) -> str:
        """Text before an item's title: from the start of the prompt, or from the previous slot on."""
        before = self.user_intro if first else self.close + self.separator
        return before + self.head.format(number=number, date=date)

    def date(self, day: int) -> str:
        """Year, month, day of a day since 1970-01-01, UTC."""
        return str(np.datetime64(day, "D")).replace("-", self.date_separator)

    def titled(self, title: str) -> str:
        """Text from the cut before a title up to its slot; braces in titles are ordinary text."""
        return self.title.replace("{title}", title)

    @property
    def between(self) -> str:
        """Between candidates: their titles start with a space."""
        return self.separator.rstrip()

    def answer(self, title: str) -> str:
        """What is asked for: a title as candidates show it."""
        return self.titled(title).removesuffix(", ")

    def user(self, items: list[tuple[int, str, str]]) -> str:
        """The whole user prompt of (number, date, title) triples, slots spelled out."""
        text = self.lead + USER_REPR_SLOT if self.lead else ""
        for i, (number, date, title) in enumerate(items):
            text += self.opening(number, date, first=i == 0) + self.titled(title) + HISTORY_SLOT
        return text + self.close + self.user_outro + USER_SLOT

    def item(self, title: str) -> str:
        """The whole item prompt, slots spelled out."""
        return self.item_intro + self.titled(title) + HISTORY_SLOT + self.item_outro + ITEM_SLOT


_CHOOSE = (
    'Choose one "Title" to recommend for this user to buy next from the following item "Title" set:'
)
TEMPLATES = {
    "reference": Template(
        user_intro="This user has made a series of purchases in the following order: ",
        head="Item No.{number}, Time: {date},",
        title=' "{title}"',
        close="",
        separator=",",
        user_outro=". Based on this sequence of purchases, generate user representation token:",
        item_intro="The item title and item embedding are as follows:",
        item_outro=", then generate item representation token:",
        date_separator="-",
        choose=f". {_CHOOSE}",
        ask=".",
    ),
    "paper": Template(
        user_intro="This user has made a series of purchases in the following order: (History Item List: ",
        head="[No.{number} Time: {date} Title:",
        title=" {title}, ",
        close="]",
        separator=", ",
        user_outro="). Based on this sequence of purchases, generate user representation token: ",
        item_intro='The item title and item embedding are as follows: "Title":',
        item_outro=", then generate item representation token: ",
        date_separator="/",
        choose=f"). {_CHOOSE}",
        ask=".",
    ),
}


def _titles_only(form: Template) -> Template:
    """Table 2 (a) of a template of Table 2 (b), of which nothing else tells of embeddings."""
    intro = form.item_intro.replace("title and item embedding are", "title is")
    return replace(form, title=form.title.removesuffix(", "), item_intro=intro)


# the slot is where the tokenizer is cut, and left out afterwards
TITLES_ONLY = {f"{wording}, titles only": _titles_only(one) for wording, one in TEMPLATES.items()}


def named(wording: str, item_repr: bool) -> str:
    """What the template of `config.prompts` is called, without or with the teacher's user representation."""
    return wording if item_repr else f"{wording}, titles only"


def _with_user_repr(form: Template) -> Template:
    """Table 2 (c) of a template of Table 2 (b)."""
    told = "this sequence of purchases"
    return replace(
        form,
        lead="This is user representation from recommendation models: ",
        user_intro=f", and {form.user_intro[0].lower()}{form.user_intro[1:]}",
        user_outro=form.user_outro.replace(told, f"{told} and user representation"),
    )


def template(wording: str, user_repr: bool = False) -> Template:
    """The template of `config.prompts`: as `named`, with the teacher's user representation or without it.

    Raises:
      ValueError: no such wording.
    """
    forms = TEMPLATES | TITLES_ONLY
    if wording not in forms:
        raise ValueError(f"prompts.wording={wording!r}; use one of {', '.join(TEMPLATES)}")
    return _with_user_repr(forms[wording]) if user_repr else forms[wording]
