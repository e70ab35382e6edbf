"""Your own table: fit a law to a CSV, read its coefficients, predict, and draw it. Run: python examples/own_table.py

Takes a second, needs nothing but umscale, and writes own_table.csv and own_table.png into the current folder.
"""

import csv
from pathlib import Path

import numpy as np

import umscale


def make_table(path: Path) -> None:
    """Write what you would bring: a row a run, here drawn from a known law with a little noise."""
    rng = np.random.Generator(np.random.PCG64(0))
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["params", "tokens", "final_loss"])
        for n in 1e7 * 2.0 ** np.arange(6):
            for d in 2e8 * 4.0 ** np.arange(4):
                loss = 1.7 + 400 * n**-0.34 + 410 * d**-0.28
                writer.writerow([int(n), int(d), f"{loss * np.exp(0.002 * rng.standard_normal()):.5f}"])


def draw(table: "dict[str, np.ndarray]", fit: umscale.LawFit, path: Path) -> None:
    """Draw losses against size, a series a budget, and the law behind them."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(5, 3.5), layout="constrained")
    for d in np.unique(table["tokens"]):
        here = table["tokens"] == d
        axes.plot(table["params"][here], table["final_loss"][here], "o", label=f"{d:.2g} tokens")
        sizes = np.geomspace(table["params"].min(), 4 * table["params"].max(), 40)
        expected = [fit.predict(N=n, D=d).points[0].loss.value for n in sizes[::8]]
        axes.plot(sizes[::8], expected, "-", color="0.6", zorder=0)
    axes.set(xscale="log", xlabel="parameters", ylabel="loss, nats per token")
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Fit, say, predict, draw."""
    path = Path("own_table.csv")
    make_table(path)
    table = umscale.read_table(path)
    columns = {"N": "params", "D": "tokens"}
    fit = umscale.fit_law(table, "chinchilla", columns, loss="final_loss", draws=200)
    for name, found in fit.coefficients.items():
        print(f"{name:6} {found.value:9.4g}  [{found.low:.4g}, {found.high:.4g}]")
    [point] = fit.predict(N=1e9, D=2e11).points
    print(
        f"at 1B parameters and 200B tokens: {point.loss.value:.3f} [{point.run.low:.3f}, {point.run.high:.3f}]"
    )
    draw(dict(table), fit, Path("own_table.png"))


if __name__ == "__main__":
    main()
