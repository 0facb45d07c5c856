//! What does the shard protocol add to a decode row, in this process, beside copying its bytes?

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use futures::{executor::block_on, io::Cursor};
use quelea_shard::{
    codec::{FrameReader, FrameWriter},
    frame::{Form, RowsHeader, SessionId},
};

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

criterion_group!(benches, row);
criterion_main!(benches);
