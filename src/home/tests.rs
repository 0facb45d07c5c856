use std::{os::unix::fs::PermissionsExt, process::Command};

use super::*;

fn temp_home() -> (tempfile::TempDir, Home) {
    let dir = tempfile::tempdir().unwrap();
    let home = Home::new(Some(dir.path().join("a").join("b"))).unwrap();
    (dir, home)
}

#[test]
fn default_follows_xdg() {
    let os = |s: &str| Some(OsString::from(s));
    assert_eq!(default_dir(os("/x"), os("/h")), Some("/x/quelea".into()));
    assert_eq!(default_dir(None, os("/h")), Some("/h/.local/share/quelea".into()));
    assert_eq!(default_dir(os("relative"), os("/h")), Some("/h/.local/share/quelea".into()));
    assert_eq!(default_dir(os(""), os("")), None);
    assert_eq!(default_dir(None, None), None);
}

#[test]
fn a_new_directory_is_private_and_absolute() {
    let (_dir, home) = temp_home();
    assert_eq!(std::fs::metadata(home.dir()).unwrap().permissions().mode() & 0o777, 0o700);
    assert!(home.dir().is_absolute());
    for path in [home.identity_key(), home.database(), home.api_token(), home.daemon_json(), home.socket().unwrap()] {
        assert_eq!(path.parent(), Some(home.dir()));
    }
}

#[test]
fn a_file_in_its_place_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    std::fs::write(&path, "x").unwrap();
    let error = Home::new(Some(path.clone())).unwrap_err();
    assert!(matches!(&error, HomeError::NotADirectory(p) if *p == path), "{error}");
    let below = Home::new(Some(path.join("below"))).unwrap_err().to_string();
    assert!(below.contains("below") && below.contains("--data-dir"), "{below}");
}

#[test]
fn a_socket_path_that_cannot_be_bound_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let home = Home::new(Some(dir.path().join("d".repeat(120)))).unwrap();
    let error = home.socket().unwrap_err().to_string();
    assert!(error.contains("too long") && error.contains("--data-dir"), "{error}");
}

#[test]
fn the_second_lock_says_who_holds_the_first() {
    let (_dir, home) = temp_home();
    let lock = home.lock().unwrap();
    let error = home.lock().unwrap_err();
    let LockError::Held { holder, .. } = &error else { panic!("{error}") };
    assert_eq!(holder.pid, std::process::id());
    let text = error.to_string();
    for part in
        [&std::process::id().to_string(), "running for", "started as", "--data-dir", home.dir().to_str().unwrap()]
    {
        assert!(text.contains(part), "{part} is missing in: {text}");
    }
    drop(lock);
    drop(home.lock().unwrap());
}

/// Part of the next test: run as a child process it takes the lock, says so and waits to be killed.
#[test]
fn holds_the_lock_until_killed() {
    let Some(dir) = std::env::var_os("QUELEA_TEST_LOCK_DIR") else { return };
    let lock = Home::new(Some(dir.into())).unwrap().lock().unwrap();
    println!("locked");
    std::io::stdout().flush().unwrap();
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
    drop(lock);
}

#[test]
fn another_process_blocks_while_it_lives_and_not_when_dead() {
    use std::{
        io::{BufRead, BufReader},
        process::Stdio,
    };

    let (_dir, home) = temp_home();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["holds_the_lock_until_killed", "--nocapture"])
        .env("QUELEA_TEST_LOCK_DIR", home.dir())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let stdout = BufReader::new(child.stdout.take().unwrap());
    // libtest may print its own words before on the same line
    assert!(stdout.lines().map_while(Result::ok).any(|line| line.ends_with("locked")), "the child never took the lock");

    let error = home.lock().unwrap_err();
    let LockError::Held { holder, .. } = &error else { panic!("{error}") };
    assert_eq!(holder.pid, child.id());
    assert!(holder.command.contains("holds_the_lock_until_killed"), "{}", holder.command);

    child.kill().unwrap();
    child.wait().unwrap();
    // its file still names it, and that blocks nobody
    assert!(std::fs::read_to_string(home.dir().join("daemon.lock")).unwrap().contains(&child.id().to_string()));
    drop(home.lock().unwrap());
}

#[test]
fn a_held_lock_file_with_garbage_is_still_a_clear_error() {
    let (_dir, home) = temp_home();
    let _lock = home.lock().unwrap();
    std::fs::write(home.dir().join("daemon.lock"), [0xff; 100]).unwrap();
    let error = home.lock().unwrap_err();
    assert!(matches!(error, LockError::HeldByUnknown(_)), "{error}");
}

#[test]
fn a_stale_garbage_lock_file_is_overwritten() {
    let (_dir, home) = temp_home();
    std::fs::write(home.dir().join("daemon.lock"), "x".repeat(10_000)).unwrap();
    let _lock = home.lock().unwrap();
    let holder: Holder =
        serde_json::from_str(&std::fs::read_to_string(home.dir().join("daemon.lock")).unwrap()).unwrap();
    assert_eq!(holder.pid, std::process::id());
}

#[test]
fn ages_read_well() {
    let age = |s| Age(Duration::from_secs(s)).to_string();
    assert_eq!(age(0), "0 s");
    assert_eq!(age(61), "1 min 1 s");
    assert_eq!(age(2 * 3600 + 300), "2 h 5 min");
    assert_eq!(age(3 * 86_400 + 4 * 3600), "3 d 4 h");
}
