//! The C programs that peers run: compiled on their first use, in a directory for temporary files.

use crate::support;
use nix::unistd::geteuid;
use std::collections::BTreeMap;
use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

const FILES: [(&str, &str); 9] = [
    ("peer.h", include_str!("peer.h")),
    ("calls.h", include_str!("calls.h")),
    ("pins.h", include_str!("pins.h")),
    ("log.h", include_str!("log.h")),
    ("guest.c", include_str!("guest.c")),
    ("peer.c", include_str!("peer.c")),
    ("storer.c", include_str!("storer.c")),
    ("prober.c", include_str!("prober.c")),
    ("vandal.c", include_str!("vandal.c")),
];

/// The path of a program, by the name of its source. `None`, with the reason printed, if there is no C compiler.
pub(crate) fn program(name: &str) -> Option<PathBuf> {
    static MADE: parking_lot::Mutex<BTreeMap<String, Option<PathBuf>>> = parking_lot::Mutex::new(BTreeMap::new());
    MADE.lock().entry(name.to_owned()).or_insert_with(|| make(name)).clone()
}

fn make(name: &str) -> Option<PathBuf> {
    let mut hasher = DefaultHasher::new();
    FILES.hash(&mut hasher);
    let dir = std::env::temp_dir().join(format!("revocable-peers-{}-{:x}", geteuid(), hasher.finish()));
    let program = dir.join(name);
    if program.exists() {
        return Some(program);
    }
    // Another process may do the same at this moment, so nothing has its name before it is whole.
    let own = dir.join(format!("{name}-{}", std::process::id()));
    fs::create_dir_all(&own).expect("a temporary directory");
    for (file, text) in FILES {
        fs::write(own.join(file), text).expect("a file in it");
    }
    let made = compile(&own, name);
    if made {
        fs::rename(own.join(name), &program).expect("one file system");
    }
    let _ = fs::remove_dir_all(&own);
    made.then_some(program)
}

fn compile(dir: &Path, name: &str) -> bool {
    let mut cc = Command::new("cc");
    cc.args(["-O2", "-Wall", "-Wextra", "-Wno-unused-function", "-pthread", "-o", name, &format!("{name}.c")])
        .current_dir(dir);
    match cc.output() {
        Ok(done) if done.status.success() && done.stderr.is_empty() => true,
        Ok(done) => panic!("{name}.c: {}", String::from_utf8_lossy(&done.stderr)),
        Err(e) => {
            support::skip(&format!("no C compiler (cc): {e}"), support::at_its_best());
            false
        }
    }
}
