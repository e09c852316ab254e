//! Points sqlx's macros at this crate's part of `sqlx-data.json`.

fn main() {
    sqlx_offline::unpack("MySQL");
    println!("cargo:rerun-if-changed=../../migrations");
}
