#!/usr/bin/env bash
# Makes the golden images with qemu-img and qemu-io, and the manifest of what
# QEMU reads, says and finds in them.
#
#   tests/golden/make.sh       replaces tests/golden/images and manifest.json
#
# The images that are committed were made by QEMU 7.2.  Times (of snapshots) and
# keys differ from run to run; nothing else should.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

# make NAME OPTIONS SIZE [COMMAND...]: an image, and what qemu-io does to it.
make() {
  local name=$1 options=$2 size=$3
  shift 3
  qemu-img create -q -f qcow2 ${options:+-o "$options"} "$name" "$size"
  change "$name" "$@"
}

change() {
  local name=$1
  shift
  local commands=()
  for command in "$@"; do commands+=(-c "$command"); done
  [[ $# == 0 ]] || qemu-io -f "${name##*.}" "${commands[@]}" "$name" >/dev/null
}

# poke NAME OFFSET HEX: bytes of the file.
poke() { printf '%b' "$(sed 's/../\\x&/g' <<<"$3")" |
  dd of="$1" bs=1 seek="$2" conv=notrunc status=none; }

edits=('write -P 1 0 100k' 'write -P 2 300k 5k' 'write -z 512k 130k'
       'write -P 3 900k 100k' 'write -z -u 920k 32k' 'discard 8k 8k')

make v2.qcow2 compat=0.10 1M "${edits[@]}"
make v3.qcow2 compat=1.1 1M "${edits[@]}"
for bytes in 512 1k 2k 4k 8k 16k 32k 128k 256k 512k 1M 2M; do
  make "cluster-$bytes.qcow2" "cluster_size=$bytes" 1M "${edits[@]}"
done
for bits in 1 2 4 8 32 64; do
  make "refcount-$bits.qcow2" "refcount_bits=$bits" 1M "${edits[@]}"
done
make odd-length.qcow2 '' 1000448 'write -P 5 999936 512'
make preallocated.qcow2 preallocation=metadata 1M 'write -P 6 100k 64k'
make empty.qcow2 '' 0
make many-tables.qcow2 cluster_size=512 64M 'write -P 7 0 512' \
  'write -P 8 33M 1k' 'write -P 9 67108352 512'

# Backing files, shorter and longer ones.
qemu-img create -q -f raw base.raw 700k
qemu-io -f raw -c 'write -P 11 0 700k' -c 'write -z 64k 64k' base.raw >/dev/null
make over-raw.qcow2 backing_file=base.raw,backing_fmt=raw 1M "${edits[@]}"
make over-qcow2.qcow2 backing_file=over-raw.qcow2,backing_fmt=qcow2 800k \
  'write -P 12 64k 4k' 'write -z 128k 64k' 'discard 320k 64k'
make over-v2.qcow2 compat=0.10,backing_file=v2.qcow2,backing_fmt=qcow2 2M \
  'write -P 13 1M 64k' 'write -z 0 64k'

# Snapshots, one of another length.
make snapshots.qcow2 '' 1M "${edits[@]}"
qemu-img snapshot -c first snapshots.qcow2
change snapshots.qcow2 'write -P 21 0 64k' 'discard 900k 100k'
qemu-img snapshot -c 'the second' snapshots.qcow2
qemu-img resize -q snapshots.qcow2 2M
change snapshots.qcow2 'write -P 22 1500k 64k' 'write -b -P 23 0 64k'

# Compressed: text-like data, with noise that does not shrink.
head -c 300000 < <(yes 'Spindle golden image') >text
python3 -c 'import random, sys
random.seed(1)
sys.stdout.buffer.write(random.randbytes(20000))' >noise
cat text noise text >data.raw
truncate --size=%512 data.raw
for type in zlib zstd; do
  qemu-img convert -f raw -O qcow2 -c -o "compression_type=$type" \
    data.raw "$type.qcow2"
done
qemu-img convert -f raw -O qcow2 -c -o cluster_size=4k,refcount_bits=1 \
  data.raw zlib-unshared.qcow2
cp zlib.qcow2 zlib-overwritten.qcow2
change zlib-overwritten.qcow2 'write -P 31 70k 1k' 'discard 128k 64k'

# Lazy refcounts; a program that died; marked, leaking, wrong refcount.
make lazy.qcow2 lazy_refcounts=on 1M "${edits[@]}"
make dirty.qcow2 lazy_refcounts=on 1M "${edits[@]}"
qemu-io -f qcow2 -t writeback -c 'write -P 41 200k 64k' -c flush -c abort \
  dirty.qcow2 >/dev/null 2>&1 || true  # died, as it should
make corrupt.qcow2 '' 1M "${edits[@]}"
poke corrupt.qcow2 79 02
make leaking.qcow2 '' 1M 'write -P 42 0 128k'
truncate --size=$((10 * 0x10000)) leaking.qcow2
poke leaking.qcow2 $((0x20000 + 2 * 9)) 0001
make wrong-refcount.qcow2 '' 1M 'write -P 43 0 64k'
poke wrong-refcount.qcow2 $((0x20000 + 2 * 5)) 0002

# Bitmaps.
make bitmaps.qcow2 '' 1M 'write -P 51 0 64k'
qemu-img bitmap --add bitmaps.qcow2 first
qemu-img bitmap --add -g 64k bitmaps.qcow2 second
change bitmaps.qcow2 'write -P 52 100k 64k' 'write -P 53 700k 1k'
qemu-img bitmap --disable bitmaps.qcow2 first
change bitmaps.qcow2 'write -P 54 300k 1k'

# External data files.
make data-file.qcow2 data_file=data-file.data 1M "${edits[@]}"
make data-file-raw.qcow2 data_file=data-file-raw.data,data_file_raw=on 1M \
  "${edits[@]}"

# Subclusters.
make extended-l2.qcow2 extended_l2=on 1M "${edits[@]}" 'write -P 61 66k 1k'
make extended-l2-16k.qcow2 extended_l2=on,cluster_size=16k 1M "${edits[@]}"
make extended-l2-over.qcow2 \
  extended_l2=on,cluster_size=128k,backing_file=base.raw,backing_fmt=raw 1M \
  'write -P 62 5k 512' 'write -z 66k 4k' 'discard 256k 16k'

# Parts that nobody knows.  The area behind the extensions of a new image is
# empty; the feature name table stands first, at 112 in version 3.
make unknown-extension.qcow2 '' 1M "${edits[@]}"
length=$(od -An -tx1 -j116 -N4 unknown-extension.qcow2 | tr -d ' ')
end=$((112 + 8 + 0x$length))
poke unknown-extension.qcow2 "$end" 12345678000000057370696e64000000
make unknown-compatible.qcow2 '' 1M "${edits[@]}"
poke unknown-compatible.qcow2 80 80
make unknown-autoclear.qcow2 '' 1M "${edits[@]}"
poke unknown-autoclear.qcow2 88 80
make unknown-incompatible.qcow2 '' 1M "${edits[@]}"
poke unknown-incompatible.qcow2 72 80

# Encrypted images.  Key material and what is encrypted do not shrink: keys of
# 128 bits, small clusters, few data.  iter-time=0 is quick to open.
make_encrypted() {
  local name=$1 options=$2 size=$3 prefix= commands=()
  shift 3
  [[ $name == *.luks ]] || prefix=encrypt.
  for command in "$@"; do commands+=(-c "$command"); done
  local secret=(--object secret,id=s,data=opensesame)
  # A short measurement of how fast keys are derived may find no processor time
  # used, and then qemu-img gives up.
  until qemu-img create -q "${secret[@]}" -f "${name##*.}" \
    -o "$options,${prefix}key-secret=s" "$name" "$size"; do :; done
  qemu-io "${secret[@]}" --image-opts "${commands[@]}" \
    "driver=${name##*.},file.filename=$name,${prefix}key-secret=s" >/dev/null
}
few_edits=('write -P 81 0 512' 'write -P 82 1500k 1k' 'write -P 83 1500k 512')
make_encrypted encrypted-aes.qcow2 encrypt.format=aes,cluster_size=4k 2M \
  'write -P 84 2k 9k' 'write -z 64k 8k' 'write -P 85 68k 512'
make_encrypted encrypted-aes-v2.qcow2 encryption=on,compat=0.10 2M \
  'write -P 86 100k 1k'
luks=encrypt.format=luks,encrypt.iter-time=0,encrypt.cipher-alg=aes-128
make_encrypted encrypted-luks.qcow2 \
  $luks,encrypt.cipher-mode=cbc,encrypt.ivgen-alg=essiv,encrypt.ivgen-hash-alg=sha256,cluster_size=512 \
  2M "${few_edits[@]}"
make_encrypted encrypted-luks-extended-l2.qcow2 \
  $luks,encrypt.cipher-mode=cbc,extended_l2=on,cluster_size=16k 2M \
  "${few_edits[@]}"
make_encrypted luks.luks \
  iter-time=0,cipher-alg=serpent-128,cipher-mode=cbc,hash-alg=ripemd160 4k \
  'write -P 87 0 4k'

# VirtualBox images.  Their UUIDs are random.
make_vdi() {
  local name=$1 options=$2 size=$3
  shift 3
  qemu-img create -q -f vdi -o "$options" "$name" "$size"
  change "$name" "$@"
}
make_vdi vdi-empty.vdi static=off 0
make_vdi vdi-dynamic.vdi static=off 5000192 'write -P 71 2M 64k' \
  'write -P 72 1000k 100k' 'write -P 73 4999680 512'
make_vdi vdi-static.vdi static=on 3M 'write -P 74 700k 600k'
# As VirtualBox marks what was discarded.
make_vdi vdi-zeroed.vdi static=off 3M 'write -P 75 0 3M'
poke vdi-zeroed.vdi $((0x204)) feffffff
poke vdi-zeroed.vdi $((0x184)) 02000000
make_vdi vdi-wrong-count.vdi static=off 3M 'write -P 76 1M 4k'
poke vdi-wrong-count.vdi $((0x184)) 02000000

# qcow.  QEMU makes clusters of 4 KiB, and above a backing file of 512 bytes;
# the other headers are made by hand.
make_qcow() {
  local name=$1
  shift
  qemu-img create -q -f qcow "$name" 1M
  change "$name" "$@"
}
# craft NAME SIZE CLUSTER_BITS L2_BITS L1_BYTES [COMMAND...]
craft_qcow() {
  local name=$1 size=$2 cluster_bits=$3 l2_bits=$4 l1_bytes=$5
  shift 5
  truncate --size=$((48 + l1_bytes)) "$name"
  poke "$name" 0 514649fb00000001
  poke "$name" 24 "$(printf '%016x%02x%02x' "$size" "$cluster_bits" "$l2_bits")"
  poke "$name" 40 0000000000000030
  change "$name" "$@"
}
make_qcow qcow.qcow 'write -P 91 512 9k' 'write -P 92 600k 100k' \
  'write -P 93 1023k 1k' 'write -P 94 2k 1k'
qemu-img create -q -f qcow -b base.raw -F raw qcow-over-raw.qcow 1M
change qcow-over-raw.qcow 'write -P 95 100k 2k' 'write -P 96 690k 20k'
# Says that it failed, once it has written everything.
qemu-img convert -f raw -O qcow -c data.raw qcow-compressed.qcow || true
qemu-img compare -q -f raw -F qcow data.raw qcow-compressed.qcow
cp qcow-compressed.qcow qcow-compressed-overwritten.qcow
change qcow-compressed-overwritten.qcow 'write -P 97 70k 1k' \
  'write -P 98 128k 64k'
# The smallest tables, and the largest.
craft_qcow qcow-small-tables.qcow $((1 << 20)) 9 6 512 \
  'write -P 99 0 40k' 'write -P 100 900k 1k' 'write -c -P 101 200k 512'
craft_qcow qcow-large-clusters.qcow $((4 << 20)) 16 13 512 \
  'write -P 102 0 1k' 'write -P 103 3M 1k' 'write -c -P 104 1M 64k'
# The disk ends with its last whole sector.
craft_qcow qcow-odd-length.qcow 700000 12 9 512 'write -P 105 699392 512' \
  'write -P 106 10k 10k'
# Two clusters in one place.
make_qcow qcow-damaged.qcow 'write -P 107 0 8k'
poke qcow-damaged.qcow $((4096 + 8)) 0000000000002000
make_encrypted encrypted-qcow.qcow encrypt.format=aes 1M \
  'write -P 108 2k 9k' 'write -P 109 700k 512'

rm -f text noise data.raw
python3 "$here/manifest.py" . >manifest.json
rm -rf "$here/images"
mkdir "$here/images"
for file in *.qcow2 *.qcow *.vdi *.luks *.raw *.data; do
  gzip -9n <"$file" >"$here/images/$file.gz"
done
mv manifest.json "$here/manifest.json"
ls -lS "$here/images" | sed -n '2,4p'
