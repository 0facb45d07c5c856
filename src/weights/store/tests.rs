use quelea_engine::Outline;

use super::*;
use crate::inference::models::{DEMO, ModelFile};

/// The embedded model, and all its chunks.
fn model() -> (ModelFile, Vec<Vec<u8>>) {
    let file = ModelFile::open(DEMO).unwrap();
    let tokenizer = outline::tokenizer_blob(&file.gguf);
    let chunks = (0..file.outline.chunks()).map(|i| file.outline.read(&file.gguf, &tokenizer, i).unwrap()).collect();
    (file, chunks)
}

fn outline_of(file: &ModelFile) -> Outline {
    Outline::clone(&file.outline)
}

/// Puts these chunks, the tokenizer's among them by its own way.
fn put(kept: &Kept, chunks: &[Vec<u8>], which: std::ops::Range<u32>) {
    let header = kept.outline.tokenizer_chunks();
    if which.contains(&0) {
        let blob = chunks[..header.len()].concat();
        assert_eq!(kept.put_tokenizer(blob).unwrap(), Put::Stored);
    }
    for chunk in which.filter(|chunk| !header.contains(chunk)) {
        assert_eq!(kept.put(chunk, 1, &chunks[chunk as usize]).unwrap(), Put::Stored);
    }
}

#[test]
fn what_was_put_is_there_after_a_restart_and_the_whole_is_the_model() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(dir.path().join("models"), None);
    let (file, chunks) = model();
    let all = file.outline.chunks();
    let half = all / 2;
    {
        let kept = Arc::new(store.create(file.id, outline_of(&file)).unwrap());
        assert!(kept.tokenizer().is_none() && kept.have().count() == 0);
        let _lock = kept.lock().unwrap();
        put(&kept, &chunks, 0..half);
        assert!(kept.lock().is_err(), "one writer at a time");
    }
    let kept = Arc::new(store.open(file.id).unwrap().unwrap());
    assert_eq!((kept.have().count(), kept.is_whole()), (half, false));
    for chunk in 0..all {
        assert_eq!(kept.read(chunk), (chunk < half).then(|| chunks[chunk as usize].clone()), "chunk {chunk}");
    }
    let lock = kept.lock().unwrap();
    put(&kept, &chunks, half..all);
    drop(lock);
    assert!(kept.is_whole() && kept.path().ends_with("model.gguf"));
    let id = quelea_engine::Manifest::from_gguf(&Gguf::open(kept.path()).unwrap()).unwrap().id();
    assert_eq!(id, file.id.0);
    assert_eq!(store.ids(), [file.id]);
    assert!(store.used() >= kept.outline.bytes());
    assert!(store.remove(file.id).unwrap() && !store.remove(file.id).unwrap());
    assert!(store.ids().is_empty() && store.open(file.id).unwrap().is_none());
}

#[test]
fn other_bytes_are_refused_and_nothing_of_them_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(dir.path().to_owned(), None);
    let (file, chunks) = model();
    let kept = store.create(file.id, outline_of(&file)).unwrap();
    let header = kept.outline.tokenizer_chunks();
    let mut blob = chunks[..header.len()].concat();
    blob[9] ^= 1;
    assert_eq!(kept.put_tokenizer(blob).unwrap(), Put::Corrupt);
    put(&kept, &chunks, header.clone());
    let (first, next) = (header.end, header.end + 1);
    let mut wrong = chunks[first as usize].clone();
    wrong[0] ^= 1;
    assert_eq!(kept.put(first, 1, &wrong).unwrap(), Put::Corrupt);
    assert_eq!(kept.put(next, 1, &chunks[first as usize]).unwrap(), Put::Corrupt, "in another's place");
    let (mut two, right) = (chunks[first as usize].clone(), chunks[next as usize].clone());
    two.extend(&right);
    two.push(0);
    assert_eq!(kept.put(first, 2, &two).unwrap(), Put::Corrupt, "a byte more");
    assert_eq!(kept.put(first, 3, &two).unwrap(), Put::Corrupt, "a chunk less");
    assert_eq!(kept.have().count(), header.end);
}

#[test]
fn what_the_disk_damages_is_forgotten_and_fetched_again() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(dir.path().to_owned(), None);
    let (file, chunks) = model();
    let all = file.outline.chunks();
    // As pulled, and as another program wrote it: the first can be mended in place.
    for adopted in [false, true] {
        if adopted {
            let gguf = dir.path().join("other.gguf");
            fs::write(&gguf, crate::demo::DEMO_GGUF).unwrap();
            let kept = store.adopt(file.id, outline_of(&file), &gguf).unwrap();
            assert!(kept.is_whole() && !gguf.exists());
        } else {
            put(&store.create(file.id, outline_of(&file)).unwrap(), &chunks, 0..all);
        }
        let path = store.open(file.id).unwrap().unwrap().path();
        let mut bytes = fs::read(&path).unwrap();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        fs::write(&path, bytes).unwrap();
        let kept = Arc::new(store.open(file.id).unwrap().unwrap());
        let range = 0..all;
        let every = std::slice::from_ref(&range);
        assert!(!kept.holds(every), "nothing is believed before it is hashed");
        let lock = kept.lock().unwrap();
        let damaged = kept.verify(every).unwrap();
        assert_eq!((damaged, kept.is_whole()), (1, false));
        let have = kept.have();
        let missing: Vec<u32> = (0..all).filter(|chunk| !have.has(*chunk)).collect();
        assert!(!missing.is_empty() && missing.len() < all as usize);
        for chunk in missing {
            put(&kept, &chunks, chunk..chunk + 1);
        }
        drop(lock);
        assert!(kept.is_whole() && kept.holds(every));
        assert_eq!((0..all).filter_map(|chunk| kept.read(chunk)).collect::<Vec<_>>(), chunks);
        assert!(store.remove(file.id).unwrap());
    }
}

#[test]
fn a_quota_holds_for_all_that_is_on_its_way() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(dir.path().join("models"), Some(10 << 20));
    let first = store.room_for(6 << 20).unwrap();
    let error = store.room_for(6 << 20).unwrap_err();
    assert_eq!(error.error_code(), ErrorCode::StorageFull);
    assert!(error.message.contains("quota of 10 MiB"), "{error}");
    // What has come counts on the disk from then on.
    first.take(4 << 20);
    let second = store.room_for(6 << 20).unwrap();
    drop((first, second));
    assert!(store.room_for(10 << 20).is_ok() && store.room_for((10 << 20) + 1).is_err());
}
