//! Hands the linker script to the linker, and how far to move everything.

fn main() {
    let dir = std::env::var("CARGO_MANIFEST_DIR").expect("set by cargo");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("none") {
        println!("cargo:rustc-link-arg-bins=-T{dir}/kernel.ld");
        println!("cargo:rustc-link-arg-bins=-zmax-page-size=4096");
        // Bytes before code and data, for whoever asks what their places are worth.
        let padding = std::env::var("TINE_PADDING").unwrap_or_else(|_| "0".into());
        println!("cargo:rustc-link-arg-bins=--defsym=__padding={padding}");
    }
    println!("cargo:rerun-if-env-changed=TINE_PADDING");
    println!("cargo:rerun-if-changed=kernel.ld");
}
