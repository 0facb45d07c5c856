use super::*;

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

fn put(path: &Path, bytes: &[u8], mode: u32) {
    fs::write(path, bytes).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn made_once_and_found_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("new").join("identity.key");
    let made = load_or_create(&path).unwrap();
    assert_eq!(mode(&path), 0o600);
    assert_eq!(fs::metadata(&path).unwrap().len(), KEYPAIR_LEN as u64);
    let found = load_or_create(&path).unwrap();
    assert_eq!(made.public(), found.public());
    let left: Vec<_> = fs::read_dir(path.parent().unwrap()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["identity.key"], "no temporary file stays");
}

#[test]
fn the_format_is_libp2ps_protobuf_keypair() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("k");
    let key = Keypair::generate_ed25519();
    let bytes = key.to_protobuf_encoding().unwrap();
    assert_eq!(&bytes[..4], [0x08, 0x01, 0x12, 0x40]);
    put(&path, &bytes, 0o600);
    assert_eq!(load(&path).unwrap().public(), key.public());
    put(&path, &bytes, 0o400);
    assert_eq!(load(&path).unwrap().public(), key.public(), "a read-only mount is fine");
}

#[test]
fn racing_creators_agree() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("identity.key");
    let keys: Vec<_> = std::thread::scope(|s| {
        let threads: Vec<_> = (0..8).map(|_| s.spawn(|| load_or_create(&path).unwrap().public())).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    assert!(keys.windows(2).all(|w| w[0] == w[1]));
}

#[test]
fn what_others_can_read_is_refused_with_the_cure() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("identity.key");
    load_or_create(&path).unwrap();
    for open in [0o640, 0o604, 0o644, 0o620, 0o666] {
        fs::set_permissions(&path, fs::Permissions::from_mode(open)).unwrap();
        let error = load_or_create(&path).unwrap_err();
        assert!(matches!(error, IdentityError::TooOpen { mode, .. } if mode == open));
        let text = error.to_string();
        assert!(text.contains(&format!("chmod 600 {}", path.display())), "{text}");
    }
}

#[test]
fn wrong_content_is_an_error_that_names_the_path_and_keeps_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("identity.key");
    let good = Keypair::generate_ed25519().to_protobuf_encoding().unwrap();
    let mut mismatched = good.clone();
    mismatched[67] ^= 1; // the public half no longer belongs to the secret half
    let cases: [(&[u8], bool); 6] = [
        (b"", true),
        (&good[..32], true),
        (&good[4..], true),
        (&[0x5a; KEYPAIR_LEN], false),
        (&mismatched, false),
        (&[7; 5000], true),
    ];
    for (bytes, wrong_length) in cases {
        put(&path, bytes, 0o600);
        let error = load_or_create(&path).unwrap_err();
        match &error {
            IdentityError::WrongLength { found, .. } => assert!(wrong_length && *found == bytes.len().min(1025)),
            IdentityError::Garbage(_) => assert!(!wrong_length),
            other => panic!("{other}"),
        }
        let text = error.to_string();
        assert!(text.contains(path.to_str().unwrap()) && text.contains("backup"), "{text}");
        assert_eq!(fs::read(&path).unwrap(), bytes);
    }
}

#[test]
fn a_directory_and_a_pipe_are_refused_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let error = load_or_create(dir.path()).unwrap_err();
    assert!(matches!(error, IdentityError::NotAFile(_)), "{error}");
    let fifo = dir.path().join("fifo");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let error = load_or_create(&fifo).unwrap_err();
    assert!(matches!(error, IdentityError::NotAFile(_)), "{error}");
}

#[test]
fn no_permission_is_not_mistaken_for_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let closed = dir.path().join("closed");
    fs::create_dir(&closed).unwrap();
    let path = closed.join("identity.key");
    load_or_create(&path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).unwrap();
    if File::open(&path).is_ok() {
        println!("skipped: this user may read everything");
        return;
    }
    let error = load_or_create(&path).unwrap_err();
    assert!(matches!(error, IdentityError::Denied { doing: "read", .. }), "{error}");
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o500)).unwrap();
    let error = load_or_create(&closed.join("other.key")).unwrap_err();
    assert!(matches!(error, IdentityError::Denied { doing: "write", .. }), "{error}");
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();
}

#[test]
fn a_file_where_a_directory_should_be() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "x").unwrap();
    let error = load_or_create(&file.join("identity.key")).unwrap_err().to_string();
    assert!(error.contains("file/identity.key"), "{error}");
}

#[test]
fn writing_keeps_or_replaces() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    write_secret(&path, b"one", Existing::Keep).unwrap();
    let error = write_secret(&path, b"two", Existing::Keep).unwrap_err();
    assert!(matches!(error, IdentityError::Io { ref source, .. } if source.kind() == io::ErrorKind::AlreadyExists));
    assert_eq!(fs::read(&path).unwrap(), b"one");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    write_secret(&path, b"three", Existing::Replace).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"three");
    assert_eq!(mode(&path), 0o600);
}

#[test]
fn tokens_are_random_private_and_checked() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("api.token");
    let token = load_or_create_token(&path).unwrap();
    assert_eq!(mode(&path), 0o600);
    assert_eq!(hex::decode(token.as_str()).unwrap().len(), TOKEN_BYTES);
    assert_eq!(load_or_create_token(&path).unwrap(), token);
    assert_ne!(load_or_create_token(&dir.path().join("other")).unwrap(), token);

    put(&path, format!("{}\n", token.as_str()).as_bytes(), 0o600);
    assert_eq!(load_token(&path).unwrap(), token);
    put(&path, b"hunter2", 0o600);
    assert!(matches!(load_or_create_token(&path), Err(IdentityError::BadToken(_))));
    let masking = load_or_create_masking_secret(&path).unwrap_err().to_string();
    assert!(masking.contains("masked") && !masking.contains("API token"), "{masking}");
    put(&path, token.as_bytes(), 0o640);
    assert!(matches!(load_token(&path), Err(IdentityError::TooOpen { .. })));
}

#[test]
fn secrets_do_not_show_in_debug() {
    let key = Keypair::generate_ed25519();
    let secret = key.clone().try_into_ed25519().unwrap().secret();
    let shown = format!("{key:?}");
    assert!(!shown.contains(&hex::encode(secret.as_ref())) && !shown.contains(&format!("{:?}", secret.as_ref())));
}
