#!/usr/bin/env bash
# Everything that a short loan of a GPU should answer, the most valuable first. Each result is written as it comes.
#
#     bash experiments/gpu/run.sh OUT SECONDS           on a GPU
#     REHEARSAL=1 bash experiments/gpu/run.sh OUT 600   on the CPU, with tiny sizes: the same steps
#
# KIT is the folder that prepare.py filled (default: .gpu-kit). OUT gets at most six files, each below 15 MB:
#     log.txt       what ran when, and how it ended
#     tests.txt     (a) pytest -m gpu
#     speed.json    (b) images per second of the real command beside a bare loop, a student's loop and Lightning's example
#     runs.tar.gz   (c) 1000 epochs of the baseline, then of the other presets, as many as fit; (d) model=pegasus with
#                   the rest of the time: numbers and pictures. Written again after each training.
#     weights-*.tar safetensors of the baseline and of pegasus
# The exit code is 1 if a step failed; on a GPU a step that its limit cut off did not fail.
set -uo pipefail
OUT=$(realpath -m "${1:?folder for the results}") SECONDS_GIVEN=${2:?seconds}
SECONDS=0
cd "$(dirname "$0")/../.."
REHEARSAL=${REHEARSAL:-0}
KIT=$(realpath -m "${KIT:-.gpu-kit}")
PYTHON=${PYTHON:-python}
WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT
export PYTHONPATH="$PWD:$KIT/packages${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
mkdir -p "$OUT"

if [ "$REHEARSAL" = 1 ]; then
	export PEGASUS_GPU_REHEARSAL=1
	DEVICE=cpu GPUS=0 EPOCHS=1
	SPEED=(--channels 4 --batch-size 16 --steps 4 --warmup 2 --rounds 1)
	SMALL=(model.networks.channels=4 callbacks.images_every_n_epochs=1)
	PRESETS=(vae)
	TESTS=$((SECONDS_GIVEN * 2 / 3))
else
	DEVICE=cuda GPUS=1 EPOCHS=1000
	SPEED=(--steps 400 --warmup 100 --rounds 3)
	SMALL=(callbacks.images_every_n_epochs=250)
	TESTS=$((SECONDS_GIVEN / 3 < 150 ? SECONDS_GIVEN / 3 : 150))
	PRESETS=(vae vae_gan spectral_norm acai acai_paper two_fc_layers four_conv_layers)
fi

FAILED=0
left() { echo $((SECONDS_GIVEN - SECONDS)); }

# step NAME SECONDS FILE COMMAND...: run a command with its output in FILE, for at most the seconds, and note how it ended.
# SIGNAL ends it: training saves at TERM. A second later TERM is harmless, a second INT would end it unsaved.
step() {
	local name=$1 limit=$2 file=$3 start=$SECONDS code
	shift 3
	if [ "$limit" -lt 5 ]; then
		echo "$name: left out, no time" | tee -a "$OUT/log.txt"
		[ "$REHEARSAL" = 1 ] && FAILED=1
		return 1
	fi
	timeout --signal="${SIGNAL:-INT}" --kill-after=15 "$limit" "$@" >>"$file" 2>&1
	code=$?
	echo "$name: exit code $code after $((SECONDS - start)) s of at most $limit; $(left) s left" | tee -a "$OUT/log.txt"
	case $code in
	0) ;;
	124 | 137) [ "$REHEARSAL" = 1 ] && FAILED=1 ;; # its limit
	*) FAILED=1 ;;
	esac
	return $code
}

at_most() { [ "$1" -lt "$2" ] && echo "$1" || echo "$2"; }

# Keep numbers and pictures. Checkpoints are too large to bring back.
pack() {
	tar -czf "$OUT/.runs.tar.gz" -C "$WORK" --exclude=checkpoints --exclude=export --exclude='*.lock' runs &&
		mv "$OUT/.runs.tar.gz" "$OUT/runs.tar.gz"
	[ "$(stat -c %s "$OUT/runs.tar.gz")" -lt 15000000 ] || echo "runs.tar.gz is larger than 15 MB" | tee -a "$OUT/log.txt"
}

date -u >"$OUT/log.txt"
if [ -d "$KIT/wheels" ]; then # only what is missing, without touching the machine's own packages
	for wheel in "$KIT"/wheels/*.whl; do
		package=$(basename "$wheel" | cut -d- -f1)
		"$PYTHON" -c "import importlib.metadata, sys; importlib.metadata.version(sys.argv[1])" "$package" 2>/dev/null ||
			"$PYTHON" -m pip install --quiet --no-index --no-deps --target "$KIT/packages" "$wheel" >>"$OUT/log.txt" 2>&1
	done
fi
"$PYTHON" - >>"$OUT/log.txt" 2>&1 <<'PY'
import torch, pytorch_lightning
print("PyTorch", torch.__version__, "Lightning", pytorch_lightning.__version__,
      torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU")
PY

step "(a) tests" "$TESTS" "$OUT/tests.txt" "$PYTHON" -m pytest -v -m gpu tests/gpu -p no:cacheprovider
step "(b) speed" "$(at_most 120 $(($(left) / 3)))" "$OUT/log.txt" \
	"$PYTHON" experiments/speed/benchmark.py --device $DEVICE "${SPEED[@]}" --json "$OUT/speed.json"

DATA=(data=silhouettes)
if [ "$REHEARSAL" = 1 ]; then
	DATA+=(data.train_per_class=40 data.test_per_class=16 data.batch_size=16)
elif [ -f "$KIT/photographs.safetensors" ]; then
	step "photographs" "$(at_most 60 "$(left)")" "$OUT/log.txt" \
		"$PYTHON" experiments/gpu/unpack.py "$KIT/photographs.safetensors" "$WORK/photographs" &&
		DATA=(data=image_folder "data.root=$WORK/photographs" "data.cache=$WORK/cache")
fi

# train MODEL SECONDS OVERRIDES...: through the real command. It saves at its limit, so a run that is cut off counts too.
train() {
	local model=$1 limit=$2 run
	shift 2
	SIGNAL=TERM step "(c, d) $model" "$limit" "$WORK/$model.txt" "$PYTHON" -m pegasus_lightning "model=$model" "${DATA[@]}" \
		"${SMALL[@]}" trainer.gpus=$GPUS callbacks.progress_bar=false experiment_name=gpu "run_name=$model" \
		"runs_dir=$WORK/runs" "$@"
	[ -f "$WORK/$model.txt" ] || return # left out
	tail -n 6 "$WORK/$model.txt" >>"$OUT/log.txt"
	pack
	run=$(echo "$WORK/runs/gpu/$model"-s*)
	if [[ $model == adversarial_vae || $model == pegasus ]] && [ -f "$run/checkpoints/last.ckpt" ]; then
		step "safetensors of $model" "$(at_most 40 "$(left)")" "$OUT/log.txt" "$PYTHON" -m pegasus_lightning.export "$run" &&
			tar -cf "$OUT/weights-$model.tar" -C "$run" export
	fi
}

# A third of the time that is left is kept for (d).
FLAGSHIP=$(($(left) / 3))
for preset in adversarial_vae "${PRESETS[@]}"; do
	train "$preset" $(($(left) - FLAGSHIP)) trainer.max_epochs=$EPOCHS
done
SHORT=()
[ "$REHEARSAL" = 1 ] && SHORT=(model.lessons=64 trainer.max_epochs=1)
train pegasus $(($(left) - 75)) trainer.max_epochs=$EPOCHS "${SHORT[@]}" # 75 s to save, pack and export
date -u >>"$OUT/log.txt"
exit $FAILED
