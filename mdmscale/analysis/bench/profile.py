"""A torch profiler trace of one step."""

from pathlib import Path

from torch.profiler import ProfilerActivity, profile

from mdmscale.analysis.bench.path_bench import PathBench, synchronise

ROWS = 15


def write_profile(bench: PathBench, folder: Path) -> str:
    """Write FOLDER/<path>.json for Perfetto or chrome://tracing.

    Returns its name and the slowest operators.
    """
    on_cuda = bench.device.type == "cuda"
    bench.step()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_cuda else [])]
    with profile(activities=activities, record_shapes=True, acc_events=True) as profiled:
        bench.step()
        synchronise(bench.device)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{bench.path.name}.json"
    profiled.export_chrome_trace(str(file))
    slowest = "self_device_time_total" if on_cuda else "self_cpu_time_total"
    table = profiled.key_averages().table(sort_by=slowest, row_limit=ROWS, max_name_column_width=50)
    return f"{file}\n{table}"
