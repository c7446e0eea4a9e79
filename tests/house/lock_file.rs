//! The packages that this crate adds to a user's `Cargo.lock`.
//!
//! Cargo locks the dependencies of every target and every `cfg`. A dependency that no user builds still has its entries in each user's
//! lock file, where it is audited and holds versions back.

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// The packages of every user. `windows-link` and `redox_syscall` are parking_lot's, for other systems.
const ALWAYS: &str = "\
    bitflags cfg-if cfg_aliases libc linux-raw-sys lock_api memmap2 nix parking_lot parking_lot_core proc-macro2 \
    quote redox_syscall scopeguard smallvec syn thiserror thiserror-impl unicode-ident windows-link";

/// The packages that all features together add.
const WITH_EVERY_FEATURE: &str = "\
    aho-corasick bindgen bitflags cc cexpr clang-sys either find-msvc-tools glob itertools kvm-bindings kvm-ioctls \
    lazy_static lazycell libloading memchr minimal-lexical nix nom once_cell pin-project-lite regex regex-automata \
    regex-syntax rustc-hash safe-mmio shlex shlex syn thiserror thiserror-impl tracing tracing-core userfaultfd \
    userfaultfd-sys vm-memory vmm-sys-util zerocopy zerocopy-derive";

#[test]
fn a_user_locks_the_dependencies_of_the_library_alone() {
    expect("default", &[], ALWAYS);
}

#[test]
fn every_feature_adds_what_it_needs_alone() {
    let Some(features) = features() else { return };
    assert!(!features.is_empty(), "the manifest has features");
    expect("all", &features, &format!("{ALWAYS} {WITH_EVERY_FEATURE}"));
}

/// Locks a crate whose only dependency is this one, with `features`, and compares.
fn expect(name: &str, features: &[String], expected: &str) {
    let user = User::new(name, features);
    let Some(lock) = user.lock() else { return };
    let mut found: Vec<&str> =
        lock.lines().filter_map(|line| line.strip_prefix("name = ")).map(|name| name.trim_matches('"')).collect();
    found.retain(|name| *name != "user" && *name != "revocable-mmio");
    found.sort_unstable();
    let mut expected: Vec<&str> = expected.split_whitespace().collect();
    expected.sort_unstable();
    assert_eq!(found, expected, "{} packages in a user's lock file, {} expected", found.len(), expected.len());
}

/// The features of the manifest, where there is one: binaries of tests also run apart from the sources.
fn features() -> Option<Vec<String>> {
    let Ok(manifest) = fs::read_to_string(here().join("Cargo.toml")) else {
        skip("no sources here");
        return None;
    };
    let section =
        manifest.lines().skip_while(|line| *line != "[features]").skip(1).take_while(|line| !line.starts_with('['));
    let names = section.filter_map(|line| line.split_once(" = [")).map(|(name, _)| name.to_owned());
    Some(names.collect())
}

fn here() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A crate in a temporary directory, removed on drop.
struct User(PathBuf);

impl User {
    fn new(name: &str, features: &[String]) -> Self {
        let user = Self(env::temp_dir().join(format!("revocable-lock-{name}-{}", std::process::id())));
        fs::create_dir_all(user.0.join("src")).expect("a temporary directory");
        fs::write(user.0.join("src/lib.rs"), "").expect("a file");
        let manifest = format!(
            "[workspace]\n[package]\nname = \"user\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\
             [dependencies]\nrevocable-mmio = {{ path = {:?}, features = {features:?} }}\n",
            here()
        );
        fs::write(user.0.join("Cargo.toml"), manifest).expect("a file");
        user
    }

    /// The lock file, or `None` where cargo cannot make one.
    ///
    /// It starts as a copy of this crate's lock file, so that a new release of a dependency changes nothing here. The network is used
    /// only if the registry's index on this machine does not have those versions.
    fn lock(&self) -> Option<String> {
        let mut said = String::new();
        for how in [&["--offline"][..], &[]] {
            match self.try_lock(how) {
                Ok(lock) => return Some(lock),
                Err(error) => said = error,
            }
        }
        skip(&format!("cargo locks nothing here: {said}"));
        None
    }

    fn try_lock(&self, how: &[&str]) -> Result<String, String> {
        let file = self.0.join("Cargo.lock");
        fs::copy(here().join("Cargo.lock"), &file).map_err(|error| error.to_string())?;
        let cargo = env::var_os("CARGO").unwrap_or_else(|| OsString::from(env!("CARGO")));
        let mut update = Command::new(cargo);
        update.args(["update", "--workspace", "--quiet"]).args(how).current_dir(&self.0);
        let output = update.output().map_err(|error| error.to_string())?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        fs::read_to_string(&file).map_err(|error| error.to_string())
    }
}

/// Past the test harness, which keeps what a passing test prints.
fn skip(why: &str) {
    let _ = writeln!(std::io::stderr(), "SKIP: {}", why.trim_end());
    assert!(env::var_os("REVOCABLE_CI").is_none_or(|value| value != "1"), "everything must run here: {why}");
}

impl Drop for User {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
