#!/usr/bin/env bash
# ./build.sh                    builds model.plan with the trtexec of this machine (TRTEXEC=... names another)
# ./build.sh --dla CORE         builds the two plans of dla/ for a DLA core and the GPU, where the folder has dla/
# ./build.sh --print [VERSION]  prints the commands for this TensorRT, or for another (8.6, 10.3, 11.4), and runs nothing
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
# PRECISION, TYPED, OLD_MODEL, SHAPES, KEEP_FP32 and, with dla/, HEAD_KEEP_FP32: what the model needs.
. ./settings.sh

fail() {
  echo "$1" >&2
  exit 1
}

find_trtexec() {
  local path
  for path in "${TRTEXEC:-}" "$(command -v trtexec || true)" /usr/src/tensorrt/bin/trtexec /opt/tensorrt/bin/trtexec; do
    if [[ -n $path && -x $path ]]; then
      echo "$path"
      return
    fi
  done
  fail "trtexec was not found: install TensorRT's tools, or name it with TRTEXEC=/path/to/trtexec"
}

# The version as major * 100 + minor, from "[TensorRT v8601]" or "[TensorRT v100300]".
read_version() {
  local digits
  digits=$("$1" --help 2>&1 | sed -n 's/.*\[TensorRT v\([0-9]*\)\].*/\1/p' | sed -n 1p || true)
  [[ -n $digits ]] || fail "$1 does not say which TensorRT it is: name the version with ./build.sh --print VERSION"
  if ((digits >= 10000)); then
    echo "$((digits / 10000 * 100 + digits / 100 % 100)) $digits"
  else
    echo "$((digits / 1000 * 100 + digits / 100 % 10)) $digits"
  fi
}

only_print=no dla="" version="" digits=""
while (($#)); do
  case $1 in
    --print)
      only_print=yes
      if [[ ${2:-} =~ ^([0-9]+)\.([0-9]+) ]]; then
        version=$((BASH_REMATCH[1] * 100 + BASH_REMATCH[2]))
        digits=VERSION
        shift
      fi
      ;;
    --dla)
      dla=${2:-0}
      [[ $dla =~ ^[0-9]+$ ]] || fail "--dla takes the number of a core"
      shift $(($# > 1))
      ;;
    *) fail "unknown option $1" ;;
  esac
  shift
done

trtexec=trtexec
if [[ -z $version ]]; then
  trtexec=$(find_trtexec)
  read -r version digits < <(read_version "$trtexec")
  [[ -n $version ]] || exit 1
fi
((version >= 804)) || fail "TensorRT $((version / 100)).$((version % 100)) is too old: 8.4 is the least"

# Up to 8.5 --buildOnly, then --skipInference: build and do not time.
common=(--skipInference)
if ((version < 806)); then common=(--buildOnly); fi

run() {
  printf '%q ' "$trtexec" "$@"
  echo
  if [[ $only_print == no ]]; then "$trtexec" "$@"; fi
}

build_for_gpu() {
  local model=model.onnx flags=()
  # TensorRT 8 builds float weights behind Q/DQ with fewer reformats than weights stored as INT8.
  if ((version < 1000)); then model=$OLD_MODEL; fi
  if ((version >= 1100)); then
    : # Types come from the graph; --fp16, --int8 and --best are gone.
  elif ((version >= 1000)) && [[ $PRECISION != int8 || $TYPED == yes ]]; then
    flags=(--stronglyTyped)
  elif [[ $PRECISION == fp16 ]]; then
    flags=(--fp16 "${KEEP_FP32[@]}")
  elif [[ $PRECISION == int8 ]]; then
    flags=(--fp16 --int8 "${KEEP_FP32[@]}")
  fi
  run --onnx="$model" --saveEngine=model.plan "${flags[@]}" "${SHAPES[@]}" "${common[@]}"
}

build_for_dla() {
  [[ -d dla ]] || fail "this folder has no dla/: write one with the target jetson"
  if ((version >= 1100 && version < 1104)); then fail "TensorRT 11.0 to 11.3 have no DLA"; fi
  local device=(--useDLACore="$dla" --allowGPUFallback)
  if ((version >= 1104)); then
    # Types come from the graph.
    run --onnx=dla/backbone-fp16.onnx --saveEngine=dla/backbone.plan "${device[@]}" "${common[@]}"
    run --onnx=dla/head-fp16.onnx --saveEngine=dla/head.plan "${common[@]}"
    return
  fi
  local flags=(--fp16)
  if [[ -f dla/calibration.cache ]]; then
    # DLA takes scales from a calibration cache, whose first line names the release.
    if [[ $only_print == no ]]; then
      sed "1s/TRT-[0-9]*/TRT-$digits/" dla/calibration.cache > dla/calibration-here.cache
    fi
    flags=(--fp16 --int8 --calib=dla/calibration-here.cache)
  fi
  run --onnx=dla/backbone.onnx --saveEngine=dla/backbone.plan "${flags[@]}" "${device[@]}" "${common[@]}"
  run --onnx=dla/head.onnx --saveEngine=dla/head.plan --fp16 "${HEAD_KEEP_FP32[@]}" "${common[@]}"
}

if [[ -n $dla ]]; then build_for_dla; else build_for_gpu; fi
