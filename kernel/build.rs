//! Hands the linker script to the linker, and in which order functions and variables lie.

fn main() {
    let dir = std::env::var("CARGO_MANIFEST_DIR").expect("set by cargo");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("none") {
        println!("cargo:rustc-link-arg-bins=-T{dir}/kernel.ld");
        println!("cargo:rustc-link-arg-bins=-zmax-page-size=4096");
        // Another order for each number, for whoever asks what the places of things are worth (lld's words).
        if let Ok(seed) = std::env::var("TINE_LAYOUT") {
            for sections in [".text*", ".rodata*", ".data*", ".bss*"] {
                println!("cargo:rustc-link-arg-bins=--shuffle-sections={sections}={seed}");
            }
        }
    }
    println!("cargo:rerun-if-env-changed=TINE_LAYOUT");
    println!("cargo:rerun-if-changed=kernel.ld");
}
