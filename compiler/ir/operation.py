"""Base of the spike dialect's ops: their types, and the checks that every op shares."""

from __future__ import annotations

from typing import ClassVar

from xdsl.utils.exceptions import VerifyException

from compiler.ir.spelling import HouseOperation
from compiler.ir.types import Element, Shaped, shaped


def require(condition: bool, op: HouseOperation, message: str) -> None:
    if not condition:
        raise VerifyException(f"{op.label}: {op.name}: {message}")


class SpikeOperation(HouseOperation):
    """Base of the dialect: types of operands and the result, and the checks that every op shares."""

    KEEPS_TIME: ClassVar[bool] = True
    """Whether operands and result have the same timesteps."""

    def operand_type(self, index: int = 0) -> Shaped:
        return shaped(self.operands[index].type)

    @property
    def result_type(self) -> Shaped:
        return shaped(self.results[0].type)

    def verify_(self) -> None:
        if self.KEEPS_TIME and self.results:
            for index in range(len(self.operands)):
                steps = self.operand_type(index).steps
                require(
                    steps == self.result_type.steps,
                    self,
                    f"operand {index} has {_time(steps)}, the result {_time(self.result_type.steps)}",
                )
        self.check()

    def check(self) -> None:
        """Raise VerifyException where shapes or kinds do not fit."""

    def expect_positive(self, *keys: str) -> None:
        for key in keys:
            require(self.get(key) > 0, self, f"{key}={self.get(key)}; it must be positive")

    def expect_pixels(self) -> None:
        sizes = self.operand_type().sizes
        require(len(sizes) == 3, self, f"the input is {self.operand_type()}; it must be HxWxC")

    def expect_axis(self) -> None:
        axis, rank = self.get("axis"), len(self.operand_type().sizes)
        require(0 <= axis < rank, self, f"axis={axis}; the input has {rank} dimensions")

    def expect_shape(self, sizes: tuple[int, ...]) -> None:
        require(self.result_type.sizes == sizes, self, f"the result is {self.result_type}; its shape must be {sizes}")

    def expect_element(self, element: Element) -> None:
        require(
            self.result_type.element == element, self, f"the result holds {self.result_type.element}, not {element}"
        )


def _time(steps: int | None) -> str:
    return "no time" if steps is None else f"T={steps}"
