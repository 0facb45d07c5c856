//! What is written can be read, by its writer alone, and as far as it goes.

use std::ops::Range;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

fn logs_of(n: u8) -> (TempDir, SessionLogs) {
    let dir = tempfile::tempdir().unwrap();
    let keypair = Keypair::ed25519_from_bytes([n; 32]).unwrap();
    let logs = SessionLogs::new(dir.path().join("sessions"), &keypair).unwrap();
    (dir, logs)
}

fn header() -> Header {
    let request = InferRequest { seed: 7, ..InferRequest::new("demo", "a secret question") };
    Header { model: "m".into(), profile: "exact".into(), request, prompt: vec![1, 2, 3] }
}

fn tokens(range: Range<u32>) -> Vec<u32> {
    range.collect()
}

/// A log of a header and these records, and where the header and each record end.
fn written(logs: &SessionLogs, records: &[Vec<u32>]) -> (String, Vec<u8>, Vec<usize>) {
    let (id, path, mut writer) = logs.create(&header(), None).unwrap();
    let len = || usize::try_from(fs::metadata(&path).unwrap().len()).unwrap();
    let mut ends = vec![len()];
    for record in records {
        writer.append(&bytes_of(record)).unwrap();
        ends.push(len());
    }
    drop(writer);
    let bytes = fs::read(&path).unwrap();
    (id, bytes, ends)
}

#[tokio::test]
async fn what_was_said_is_read_again_and_gone_on_with() {
    let (_dir, logs) = logs_of(1);
    let mut log = SessionLog::begin(&logs, header(), None).await.unwrap();
    let id = log.id().to_owned();
    assert!((10..200).all(|token| log.push(token)));
    for busy in [logs.earlier(&id), logs.earlier(LAST)] {
        assert_eq!(busy.unwrap_err().error_code(), ErrorCode::AnswerBusy);
    }
    assert_eq!(logs.last_idle().unwrap_err().error_code(), ErrorCode::NotFound);
    assert_eq!(log.cut().await.as_ref(), Some(&id));
    let earlier = logs.earlier(&id).unwrap();
    assert_eq!((&earlier.header, &earlier.said), (&header(), &tokens(10..200)));
    assert_eq!(logs.earlier(&id).unwrap_err().error_code(), ErrorCode::AnswerBusy, "twice at once");

    let mut log = SessionLog::begin(&logs, header(), Some(earlier)).await.unwrap();
    assert_eq!(logs.earlier(&id).unwrap_err().error_code(), ErrorCode::AnswerBusy, "it is gone on with");
    assert!(log.push(200));
    assert_eq!(log.cut().await.as_ref(), Some(&id));
    assert_eq!(logs.earlier(LAST).unwrap().said, tokens(10..201));
    assert_eq!(logs.last_idle().unwrap().said, tokens(10..201));

    let raw = fs::read(logs.path(&id)).unwrap();
    assert!(!raw.windows(6).any(|window| window == b"secret"), "it can be read on disk");
    let others = SessionLogs { secret: Zeroizing::new([0; 32]), ..logs.clone() };
    assert_eq!(others.earlier(&id).unwrap_err().error_code(), ErrorCode::AnswerUnreadable);
}

#[test]
fn another_model_or_arithmetic_is_refused() {
    let (_dir, logs) = logs_of(2);
    let (model, request) = (ModelId([3; 32]), InferRequest::new("demo", "hi"));
    let header = Header { model: model.to_string(), ..header() };
    let (id, _, writer) = logs.create(&header, None).unwrap();
    drop(writer);
    let earlier = logs.earlier(&id).unwrap();
    assert_eq!(earlier.prompt_to(&model).unwrap(), [1, 2, 3]);
    assert_eq!(earlier.prompt_to(&ModelId([4; 32])).unwrap_err().error_code(), ErrorCode::ModelUnknown);
    earlier.computed_with("exact").unwrap();
    assert_eq!(earlier.computed_with("candle-cpu-f32").unwrap_err().error_code(), ErrorCode::ProfileMismatch);
    let now = InferRequest { step_timeout_ms: 5, seed: 1, ..request };
    let asked = InferRequest { step_timeout_ms: 5, ..header.request };
    assert_eq!(earlier.asked(&now), asked, "how tokens are drawn is as it was");
}

#[tokio::test]
async fn complete_old_and_too_many_ones_go_away() {
    let (_dir, logs) = logs_of(3);
    let mut complete = SessionLog::begin(&logs, header(), None).await.unwrap();
    let id = complete.id().to_owned();
    assert!(complete.push(1));
    complete.over().await;
    assert!(logs.all().is_empty());
    assert_eq!(logs.earlier(&id).unwrap_err().error_code(), ErrorCode::NotFound);
    for wrong in ["../../etc/passwd", "", "0123456789ABCDEF", "0123456789abcde", "last "] {
        assert_eq!(logs.earlier(wrong).unwrap_err().error_code(), ErrorCode::Usage, "{wrong}");
    }
    for n in 0..MAX_LOGS + 5 {
        fs::write(logs.path(&format!("{n:016x}")), b"x").unwrap();
    }
    let old = logs.path("0000000000000001");
    let yesterday = SystemTime::now() - EXPIRY - Duration::from_secs(60);
    File::options().write(true).open(&old).unwrap().set_modified(yesterday).unwrap();
    logs.sweep();
    assert!(!old.exists() && logs.all().len() == MAX_LOGS);
    logs.make_room(MAX_LOGS, 3);
    assert_eq!(logs.all().len(), 3);
    fs::write(logs.path("0000000000000002").with_extension(NEW), b"torn").unwrap();
    logs.make_room(0, 0);
    assert!(logs.all().is_empty());
}

#[tokio::test]
async fn a_full_disk_ends_the_log_and_nothing_else() {
    let (_dir, logs) = logs_of(4);
    let (id, path, mut writer) = logs.create(&header(), None).unwrap();
    // Room for some records of one token each, of 24 bytes; or for one with many.
    writer.left = 1_000;
    let mut log = SessionLog::of(id.clone(), path, writer);
    let mut told = 0;
    let failing = async {
        for token in 0.. {
            if !log.push(token) {
                told = token;
                break;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), failing).await.unwrap();
    assert!((0..10).all(|token| log.push(token)), "it is told once");
    assert_eq!(log.cut().await.as_ref(), Some(&id));
    let said = logs.earlier(&id).unwrap().said;
    assert!(said.len() < usize::try_from(told).unwrap());
    assert_eq!(said, tokens(0..u32::try_from(said.len()).unwrap()));
}

#[tokio::test]
async fn a_log_that_cannot_be_made_leaves_nothing_behind() {
    let (_dir, logs) = logs_of(5);
    fs::write(&logs.dir, b"no folder").unwrap();
    assert!(SessionLog::begin(&logs, header(), None).await.is_err());
    fs::remove_file(&logs.dir).unwrap();
    let long = Header { prompt: vec![1; usize::try_from(file::MAX_FILE / 2).unwrap()], ..header() };
    assert!(SessionLog::begin(&logs, long, None).await.is_err());
    assert!(logs.all().is_empty());
}

#[test]
fn torn_off_anywhere_it_holds_all_records_before() {
    let (_dir, logs) = logs_of(6);
    let records = [tokens(0..1), tokens(1..2), tokens(2..9), vec![], tokens(9..10), tokens(10..40)];
    let (id, bytes, ends) = written(&logs, &records);
    for end in 0..=bytes.len() {
        fs::write(logs.path(&id), &bytes[..end]).unwrap();
        let read = logs.earlier(&id);
        match ends.iter().filter(|whole| **whole <= end).count() {
            0 => assert_eq!(read.unwrap_err().error_code(), ErrorCode::AnswerUnreadable, "{end}"),
            whole => assert_eq!(read.unwrap().said, records[..whole - 1].concat(), "{end}"),
        }
    }
}

proptest! {
    #[test]
    fn no_change_of_a_file_gives_a_wrong_token(
        sizes in prop::collection::vec(0_u32..5, 0..8),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        cut in any::<Option<prop::sample::Index>>(),
        more in prop::collection::vec(any::<u8>(), 0..64),
    ) {
        let (_dir, logs) = logs_of(7);
        let mut next = 0;
        let records: Vec<Vec<u32>> = sizes.iter().map(|size| { next += size; tokens(next - size..next) }).collect();
        let (id, whole, ends) = written(&logs, &records);
        let mut bytes = whole.clone();
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        bytes.extend(more);
        fs::write(logs.path(&id), &bytes).unwrap();
        let same = whole.iter().zip(&bytes).take_while(|(a, b)| a == b).count();
        let kept = ends.iter().filter(|end| **end <= same).count();
        match logs.earlier(&id) {
            Ok(earlier) => prop_assert_eq!(earlier.said, records[..kept - 1].concat()),
            Err(error) => prop_assert!(kept == 0, "{}", error),
        }
    }
}
