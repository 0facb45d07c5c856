//! What does the shard protocol add to a decode row, in this process, beside copying its bytes; and what does it cost a stage to
//! sign for its rows?

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use futures::{executor::block_on, io::Cursor};
use libp2p::identity::Keypair;
use quelea_shard::{
    codec::{FrameReader, FrameWriter},
    commitment::{Commitment, EVERY, Point, Roots, SETTLED, digests},
    frame::{Form, RowsHeader, SessionId},
};
use quelea_wire::{ModelId, NetworkId, Profile, SpanRange};

/// Values in a row: 8 KiB, the hidden size of common models of 3 to 8 billion parameters is 2,048 to 4,096.
const WIDTH: usize = 2048;

fn header() -> RowsHeader {
    RowsHeader {
        session: SessionId([7; 16]),
        epoch: 1,
        seq: 1,
        pos: 1,
        rows: 1,
        last_row_only: false,
        rewind: false,
        deadline_ms: 1000,
        total: 4 * 2048,
        offset: 0,
    }
}

fn row(c: &mut Criterion) {
    let values = vec![0.5_f32; WIDTH];
    let mut group = c.benchmark_group("decode row of 8 KiB");
    group.throughput(Throughput::Bytes(4 * 2048));
    group.bench_function("copy", |b| b.iter(|| black_box(values.clone())));
    group.bench_function("frame", |b| {
        let mut writer = FrameWriter::new(futures::io::sink());
        b.iter(|| {
            writer.queue_rows(Form::Rows, &header(), black_box(&values));
            block_on(writer.flush()).expect("a sink takes everything");
        });
    });
    let mut bytes = Cursor::new(Vec::new());
    let mut writer = FrameWriter::new(&mut bytes);
    writer.queue_rows(Form::Rows, &header(), &values);
    block_on(writer.flush()).expect("memory takes everything");
    let bytes = bytes.into_inner();
    group.bench_function("take apart", |b| {
        b.iter(|| {
            let mut reader = FrameReader::new(Cursor::new(&bytes));
            let raw = block_on(reader.next_raw()).expect("our own frame").expect("one frame");
            black_box(RowsHeader::split(raw.body).expect("our own header").1.len())
        });
    });
    group.finish();
}

/// What a stage does for its commitments over the rows between two of them: digests of what comes in and of what goes out,
/// both roots, and a signature.
fn commit(c: &mut Criterion) {
    let (keypair, network) = (Keypair::generate_ed25519(), NetworkId::from_name("bench"));
    let values = vec![0.5_f32; WIDTH];
    let mut group = c.benchmark_group(format!("commitment to {EVERY} decode rows of 8 KiB"));
    group.throughput(Throughput::Elements(u64::from(EVERY)));
    let digest = || [digests(black_box(&values), WIDTH), digests(black_box(&values), WIDTH)];
    group.bench_function("digests", |b| {
        b.iter(|| (0..EVERY).for_each(|_| drop(black_box(digest()))));
    });
    group.bench_function("all of it", |b| {
        b.iter_batched(
            || Roots::new(0, 1),
            |mut roots| {
                let points = (0..EVERY + SETTLED).flat_map(|pos| {
                    // Those behind the last multiple belong to the next one.
                    let [input, output] = if pos < EVERY { digest() } else { [vec![[0; 32]], vec![[0; 32]]] };
                    roots.computed(pos, [&input, &output], false, false)
                });
                let signed = points.map(|Point { first, rows, in_root, out_root }| {
                    let (model, profile) = (ModelId([1; 32]), Profile::Exact);
                    let (session, span) = (SessionId([7; 16]), SpanRange::new(0, 8).expect("a span"));
                    let of = Commitment { session, epoch: 1, model, profile, span, first, rows, in_root, out_root };
                    of.seal(&keypair, &network).expect("an Ed25519 key")
                });
                assert_eq!(signed.map(black_box).count(), 1);
            },
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

criterion_group!(benches, row, commit);
criterion_main!(benches);
