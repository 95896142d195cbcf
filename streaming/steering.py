"""Keys to attributes to captions: steering is a prompt switch with a remembered state."""

from collections.abc import Mapping, Sequence
from typing import Any

from fewstep.streaming.protocol import BadMessage, Steer


class Steering:
    """Attribute state of a model whose card names steering axes; each state has one canonical caption."""

    def __init__(self, spec: Mapping[str, Any]) -> None:
        self.axes: Sequence[Mapping[str, Any]] = spec.get("axes", [])
        self._prompts: Mapping[str, str] = spec.get("prompts", {})
        self.state: dict[str, str] = {axis["name"]: spec["default"][axis["name"]] for axis in self.axes}

    def apply(self, message: Steer) -> str:
        """Change one attribute and return the caption of the new state."""
        name, value = self._resolve(message)
        state = {**self.state, name: value}
        caption = self._prompts["|".join(state.values())]
        self.state = state
        return caption

    def _resolve(self, message: Steer) -> tuple[str, str]:
        if not self.axes:
            raise BadMessage("unsupported", "steer: this model has no steering axes", ref="steer")
        for axis in self.axes:
            if message.key is not None and message.key in axis.get("keys", {}):
                return axis["name"], axis["keys"][message.key]
            if message.axis == axis["name"] and message.value in axis["values"]:
                return axis["name"], str(message.value)
        if message.key is not None:
            known = ", ".join(key for axis in self.axes for key in axis.get("keys", {}))
            raise BadMessage("out_of_range", f"steer: no key {message.key!r}; keys: {known}", ref="steer")
        known = "; ".join(f"{axis['name']}: {', '.join(axis['values'])}" for axis in self.axes)
        wanted = f"{message.axis!r} = {message.value!r}"
        raise BadMessage("out_of_range", f"steer: no {wanted}; choose from {known}", ref="steer")
