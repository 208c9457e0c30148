from dataclasses import dataclass
@dataclass(frozen=True)
class Solution:
    data: object; chain: object; settings: object; level: int; points: tuple; converged: bool; residual: float; iterations: int; quadrature_error: float; message: str
