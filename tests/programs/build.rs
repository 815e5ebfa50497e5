//! Link lines of the user programs.
//!
//! Everything is compiled position independent (the target's default), then linked at a fixed
//! address, except `pie`, which stays a static PIE. `tiny` has a script of its own: one segment,
//! nothing but headers and code.

/// Programs linked at a fixed address in the ordinary way.
const FIXED: &[&str] = &["init", "calls", "sigtest", "fpu", "ubench"];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=link/tiny.ld");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() != Ok("none") {
        return;
    }
    let here = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    for arg in [
        "--strip-all",
        "--build-id=none",
        "--gc-sections",
        "--hash-style=sysv",
        "--no-eh-frame-hdr",
    ] {
        println!("cargo::rustc-link-arg-bins={arg}");
    }
    for bin in FIXED.iter().chain(&["tiny"]) {
        println!("cargo::rustc-link-arg-bin={bin}=-no-pie");
    }
    for bin in FIXED {
        println!("cargo::rustc-link-arg-bin={bin}=--image-base=0x400000");
    }
    for arg in ["-static", "-pie", "--no-dynamic-linker", "-ztext"] {
        println!("cargo::rustc-link-arg-bin=pie={arg}");
    }
    println!("cargo::rustc-link-arg-bin=tiny=-T{here}/link/tiny.ld");
}
