#!/usr/bin/env bash
# Measures all GPU numbers of docs/performance.md, on the first GPU of this machine.
set -euo pipefail

usage() {
    cat <<'END'
usage: tools/bench_gpu.sh [FOLDER] [--quick]

Runs benchmarks on one GPU and writes the results to FOLDER/gpu.md (default FOLDER: runs/bench_gpu):
  1. the loss paths of a 1B-class model in bf16 at length 4096, and the head's kernels at vocabulary size 126,464
     (cut-cross-entropy and liger-kernel are included if they are installed);
  2. whole training runs of that model: MFU, tokens/s and peak memory with and without MIRROR, the head's kernels,
     model.compile and model.activation_checkpointing;
  3. the LLaDA-8B shape at 1 x 4096 tokens: LoRA on a random model of that shape, and full fine-tuning. Full
     fine-tuning needs 180 GB of free host memory for the optimizer, or a folder in MDMSCALE_NVME to offload to.
Part 3 needs 20 GB of disk for LoRA and 150 GB for the last checkpoint of full fine-tuning. --quick skips part 3.
Nothing is downloaded: the training data is Python's standard library.
END
}

folder=runs/bench_gpu quick=
for argument in "$@"; do
    case $argument in
        -h | --help) usage; exit 0 ;;
        --quick) quick=1 ;;
        -*) echo "error: unknown option $argument; see --help" >&2; exit 2 ;;
        *) folder=$argument ;;
    esac
done
nvidia-smi > /dev/null 2>&1 || { echo "error: nvidia-smi finds no GPU here" >&2; exit 2; }
folder=$(realpath -m "$folder")
cd "$(dirname "$0")/.."
mkdir -p "$folder"
table=$folder/gpu.md
data=$folder/data

section() { printf '\n## %s\n\n' "$1" | tee -a "$table"; }
block() { { echo '```'; "$@" 2>> "$folder/errors.log" || echo "failed: $*; see errors.log"; echo '```'; } | tee -a "$table"; }

shape=(--vocab 126464 --hidden 2048 --layers 16 --heads 16 --length 4096 --dtype bf16 --device cuda)
model=(model.vocab_size=126464 model.hidden_size=2048 model.intermediate_size=5632 model.num_hidden_layers=16
    model.num_attention_heads=16 model.num_key_value_heads=16 model.max_position_embeddings=4096)
steps=12

# train NAME OVERRIDES...: trains $steps steps and prints a table row. The first four steps, a warm-up, do not count.
train() {
    local name=$1
    shift
    rm -rf "${folder:?}/$name"
    python launchers/train.py --config configs/1b_pretrain.yaml "run.name=$name" "run.output_dir=$folder" \
        "data.path=$data" "model.tokenizer=$data/tokenizer" data.sequence_length=4096 data.held_out=0.01 \
        train.steps=$steps train.global_batch_size=4 train.micro_batch_size=1 optimizer.warmup_steps=2 \
        optimizer.decay_steps=2 "diffusion.p_pots.probe_steps=[]" diffusion.t_sampler=uniform \
        eval.every=0 checkpoint.every=0 logging.tensorboard=false parallel.zero_stage=1 "$@" \
        > "$folder/$name.log" 2>&1 || echo "$name failed: $(tail -n 1 "$folder/$name.log")" >&2
    rm -rf "$folder/$name/checkpoints" "$folder/$name/hf"
    python - "$folder/$name" "$name" "$steps" << 'END'
import sys
from pathlib import Path
from statistics import median

from mdmscale.training.metrics import read_metrics

folder, name = Path(sys.argv[1]), sys.argv[2]
records = read_metrics(folder) if (folder / "metrics.jsonl").exists() else []
finished, records = len(records) == int(sys.argv[3]), records[4:]
if not finished:
    print(f"| {name} | failed | | | |")
else:
    middle = {key: median(record[key] for record in records if key in record) for key in records[-1]
              if isinstance(records[-1][key], (int, float))}
    mfu = f"{middle['mfu']:.1%}" if "mfu" in middle else "-"
    seconds = sum(value for key, value in middle.items() if key.startswith("seconds_"))
    print(f"| {name} | {seconds:.3f} | {middle['tokens_per_second']:,.0f} | {mfu} "
          f"| {max(record['peak_memory'] for record in records) / 2**30:.1f} |")
END
}
heading() { printf '| run | s a step | clean tokens/s | MFU | peak, GiB |\n|---|---:|---:|---:|---:|\n'; }

{
    echo "# Measured on $(nvidia-smi --query-gpu=name --format=csv,noheader | head -n 1)"
    echo
    python -c 'import torch, transformers, deepspeed, platform; print(f"Python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}, deepspeed {deepspeed.__version__}; tools/bench_gpu.sh")' 2> /dev/null | tail -n 1
} | tee "$table"

section "Paths to the loss: 1B-class model, bf16, 2 x 4096 tokens"
block python tools/bench.py "${shape[@]}" --batch 2 --rounds 5 --parts --json "$folder/paths.json"
section "The head alone matters most here: two layers"
block python tools/bench.py "${shape[@]}" --layers 2 --batch 4 --rounds 5

[ -e "$data/dataset.json" ] || python tools/prepare_data.py stdlib --train-tokenizer 1024 --output "$data" > "$folder/data.log" 2>&1
section "Training: 1B-class model, bf16, 4 x 4096 tokens a step in turns of one sample"
{
    heading
    train single diffusion.masking=bernoulli "${model[@]}"
    train mirror diffusion.masking=mirror "${model[@]}"
    train single-chunked-head diffusion.masking=bernoulli model.head=chunked "${model[@]}"
    train single-compiled diffusion.masking=bernoulli model.compile=true "${model[@]}"
    train mirror-compiled diffusion.masking=mirror model.compile=true "${model[@]}"
    train mirror-selective diffusion.masking=mirror model.activation_checkpointing=selective "${model[@]}"
    train mirror-full diffusion.masking=mirror model.activation_checkpointing=full "${model[@]}"
} 2>> "$folder/errors.log" | tee -a "$table"
[ -z "$quick" ] || exit 0

section "LLaDA-8B's shape, bf16, 1 x 4096 tokens, MIRROR"
large=(model.vocab_size=126464 model.hidden_size=4096 model.intermediate_size=12288 model.num_hidden_layers=32
    model.num_attention_heads=32 model.num_key_value_heads=32 model.max_position_embeddings=4096
    train.global_batch_size=1 model.activation_checkpointing=full diffusion.masking=mirror)
python - "$folder/8b" "$data/tokenizer" << 'END' > "$folder/8b.log" 2>&1 || echo "no 8B model: see 8b.log" | tee -a "$table"
import sys

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

torch.set_default_dtype(torch.bfloat16)
config = LlamaConfig(vocab_size=126464, hidden_size=4096, intermediate_size=12288, num_hidden_layers=32,
                     num_attention_heads=32, max_position_embeddings=4096)
with torch.device("cuda"):
    model = LlamaForCausalLM(config)
model.save_pretrained(sys.argv[1])
AutoTokenizer.from_pretrained(sys.argv[2], trust_remote_code=False).save_pretrained(sys.argv[1])
END
{
    heading
    train lora-8b "${large[@]}" "model.path=$folder/8b" model.lora.rank=16
    rm -rf "$folder/8b"
    if [ "$(awk '/MemAvailable/ {print int($2 / 1e6)}' /proc/meminfo)" -ge 180 ]; then
        train full-8b-host "${large[@]}" parallel.zero_stage=2 parallel.offload_optimizer=cpu
    elif [ -n "${MDMSCALE_NVME:-}" ]; then
        train full-8b-nvme "${large[@]}" parallel.zero_stage=3 parallel.offload_optimizer=nvme "parallel.nvme_path=$MDMSCALE_NVME"
    else
        echo "| full-8b | needs 180 GB of host memory, or MDMSCALE_NVME | | | |"
    fi
} 2>> "$folder/errors.log" | tee -a "$table"
