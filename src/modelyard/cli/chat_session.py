"""A conversation under way: asks, shows the answer as it comes, keeps what was said within the model's context."""

from __future__ import annotations

import asyncio
import sys

from modelyard.cli.chat_stream import ContextExceeded, Heard, Kind, ask
from modelyard.cli.conversation import Conversation, Measure, body, to_leave_out
from modelyard.cli.output import ERR, OUT, say
from modelyard.cli.visible import visible
from modelyard.records.listening import Listening


class Session:
    """`talk` is all that was said. `quietly`: the answer is only returned."""

    def __init__(self, where: Listening, key: str, talk: Conversation, context_tokens: int, *, quietly: bool) -> None:
        self.talk, self.context_tokens = talk, context_tokens
        self.last = Heard()
        self._where, self._key, self._quietly = where, key, quietly
        self._measure = Measure()
        self._left_out = 0
        self._thinking = False

    def ask(self, question: str) -> str:
        """The answer. Interrupted, it stays as far as it came, and KeyboardInterrupt goes on. Raises EngineFailed."""
        left_out = to_leave_out(self.talk, question, self.context_tokens, self._measure)
        while True:
            self._tell_left_out(left_out)
            heard = self.last = Heard()
            messages = self.talk.messages(question, left_out=left_out)
            try:
                asyncio.run(ask(self._where, self._key, body(self.talk, messages), heard, self._show))
                break
            except ContextExceeded:
                # The estimate was too low: the engine has the last word.
                if left_out >= len(self.talk.exchanges):
                    raise
                left_out += 1
            except KeyboardInterrupt:
                self._close()
                if heard.pieces:
                    self.talk = self.talk.after(question, heard.text)
                raise
            except BaseException:
                self._close()
                raise
        self._close()
        self._measure = self._measure.learnt(messages, heard.prompt_tokens)
        self.talk = self.talk.after(question, heard.text)
        return heard.text

    @property
    def tokens(self) -> int:
        """About how many tokens the conversation takes."""
        return self._measure.tokens(self.talk.messages("", left_out=self._left_out))

    def begin_anew(self, talk: Conversation) -> None:
        """Go on with another conversation."""
        self.talk, self._left_out = talk, 0

    def _tell_left_out(self, count: int) -> None:
        if count > self._left_out and not self._quietly:
            what = "exchange no longer fits" if count == 1 else f"{count} exchanges no longer fit"
            _aside(f"(the first {what} into {self.context_tokens} tokens: not sent any more)")
        self._left_out = count

    def _show(self, piece: str, kind: Kind) -> None:
        if self._quietly:
            return
        if kind == "reasoning":
            self._thinking = True
            OUT.print(visible(piece), style="dim", markup=False, end="")
            return
        if self._thinking:
            self._thinking = False
            sys.stdout.write("\n\n")
        sys.stdout.write(visible(piece))
        sys.stdout.flush()

    def _close(self) -> None:
        """The line of the answer ends."""
        self._thinking = False
        if not self._quietly and self.last.first_at:
            say("")


def tell_cost(heard: Heard, max_tokens: int) -> None:
    """What the answer took, beside it and not in it: standard error, so that a pipe gets the answer alone."""
    if heard.completion_tokens:
        _aside(cost(heard, max_tokens))


def cost(heard: Heard, max_tokens: int) -> str:
    """`8 tokens, 51 per second, the first after 0.12 s`"""
    parts = [f"{heard.completion_tokens} token{'s' if heard.completion_tokens != 1 else ''}"]
    if heard.tokens_per_s is not None:
        parts.append(f"{heard.tokens_per_s:.0f} per second")
    if heard.first_token_s is not None:
        parts.append(f"the first after {heard.first_token_s:.2f} s")
    cut = f"; cut at max_tokens={max_tokens}" if heard.finish_reason == "length" else ""
    return ", ".join(parts) + cut


def _aside(text: str) -> None:
    ERR.print(text, style="dim", markup=False)
