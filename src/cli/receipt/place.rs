//! Where a receipt goes: made sure of before anybody is asked, and written whole or not at all.

use std::{
    fs::{File, Permissions},
    io::{self, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use quelea_ledger::receipt::MAX_FILE;
use quelea_wire::ErrorCode;

use super::super::exit::CliError;

/// What others may do with a new receipt is up to the umask, as with any file that a command makes.
const MODE: u32 = 0o666;

/// A place for one receipt.
pub(in crate::cli) struct Place {
    file: PathBuf,
    /// As long as the longest receipt and without a name: there is room for one, and a process that dies leaves nothing.
    room: File,
}

impl Place {
    /// Makes sure that a receipt can be written to `file`. What is there already stays until there is a new one.
    pub(in crate::cli) fn reserve(file: &Path) -> Result<Self, CliError> {
        let refused = |why: &dyn std::fmt::Display| {
            let message = format!("no receipt can be written to {}: {why}", file.display());
            CliError::new(ErrorCode::Usage, message).hint("nobody was asked for anything yet")
        };
        let place = match file.canonicalize() {
            // A link stays one, and what it leads to is replaced.
            Ok(there) if there.is_file() => there,
            Ok(_) => return Err(refused(&"it is no file")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => file.to_owned(),
            Err(error) => return Err(refused(&error)),
        };
        if place.file_name().is_none() {
            return Err(refused(&"it is no file"));
        }
        let room = reserved(folder(&place)).map_err(|error| refused(&error))?;
        Ok(Self { file: place, room })
    }

    /// Writes it.
    pub(in crate::cli) fn write(self, receipt: &[u8]) -> Result<(), CliError> {
        let Self { file, room } = self;
        drop(room);
        replaced(&file, receipt).map_err(|error| {
            let message = format!("cannot write {}: {error}", file.display());
            let error = CliError::new(ErrorCode::StorageFailed, message);
            error.hint("the answer is complete and paid for; with --json the receipt is in it, too, in hex")
        })
    }
}

fn folder(file: &Path) -> &Path {
    file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn reserved(folder: &Path) -> io::Result<File> {
    let mut room = tempfile::tempfile_in(folder)?;
    room.write_all(&vec![0; MAX_FILE])?;
    room.sync_all()?;
    Ok(room)
}

fn replaced(file: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = folder(file);
    let permissions = Permissions::from_mode(MODE);
    let mut temp = tempfile::Builder::new().prefix(".receipt-").permissions(permissions).tempfile_in(folder)?;
    temp.write_all(bytes)?;
    temp.as_file().sync_all()?;
    temp.persist(file).map_err(|error| error.error)?;
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_receipt_is_there_whole_or_as_it_was() {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("a.receipt");
        drop(Place::reserve(&file).unwrap());
        assert!(names(home.path()).is_empty());
        Place::reserve(&file).unwrap().write(b"first").unwrap();
        drop(Place::reserve(&file).unwrap());
        assert_eq!(fs::read(&file).unwrap(), b"first");
        let link = home.path().join("link");
        symlink(&file, &link).unwrap();
        Place::reserve(&link).unwrap().write(b"second").unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"second");
        assert!(link.is_symlink());
        assert_eq!(names(home.path()), ["a.receipt", "link"]);
    }

    #[test]
    fn where_none_can_be_is_said_before() {
        let home = tempfile::tempdir().unwrap();
        for (place, why) in [("missing/a.receipt", "No such file"), ("", "no file"), ("..", "no file")] {
            let Err(error) = Place::reserve(&home.path().join(place)) else { panic!("{place}") };
            assert!(error.code == ErrorCode::Usage && error.message.contains(why), "{}", error.message);
        }
        assert!(Place::reserve(Path::new("/dev/null")).is_err());
        // A folder that goes away meanwhile.
        let gone = home.path().join("gone");
        fs::create_dir(&gone).unwrap();
        let place = Place::reserve(&gone.join("a.receipt")).unwrap();
        fs::remove_dir(&gone).unwrap();
        assert_eq!(place.write(b"x").unwrap_err().code, ErrorCode::StorageFailed);
    }
}
