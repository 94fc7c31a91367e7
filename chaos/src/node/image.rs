//! Images from files: archives that a container runtime imports without any registry.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Context;
use anyhow::ensure;
use serde_json::Value;
use serde_json::json;
use sha2::Digest;
use sha2::Sha256;

/// Folders that every container expects.
const FOLDERS: &[(&str, u32)] =
    &[("tmp", 0o1777), ("dev", 0o755), ("proc", 0o755), ("run", 0o755), ("sys", 0o755)];
/// Whom programs within trust, as on any distribution of this family.
const AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// An image of one layer.
pub struct Image {
    name: String,
    program: PathBuf,
    files: BTreeMap<PathBuf, PathBuf>,
}

impl Image {
    /// An image that runs `program`, with the libraries that it is linked with.
    pub fn of(name: &str, program: &Path) -> anyhow::Result<Self> {
        let mut files = libraries(program)?;
        let file = program.file_name().context("a program has a name")?;
        let inside = Path::new("/bin").join(file);
        files.insert(inside.clone(), program.to_owned());
        if Path::new(AUTHORITIES).exists() {
            files.insert(AUTHORITIES.into(), AUTHORITIES.into());
        }
        Ok(Self { name: name.to_owned(), program: inside, files })
    }

    /// Writes it as `docker save` does.
    pub fn write(&self, archive: &Path) -> anyhow::Result<()> {
        let layer = self.layer()?;
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let configuration = json!({
            "architecture": architecture,
            "os": "linux",
            "config": { "Entrypoint": [self.program], "Env": ["PATH=/bin"] },
            "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{}", digest(&layer))] },
        });
        let configuration = configuration.to_string();
        let named = format!("{}.json", digest(configuration.as_bytes()));
        let manifest: Value = json!([
            { "Config": named, "RepoTags": [self.name], "Layers": ["layer.tar"] },
        ]);
        let mut whole = tar::Builder::new(fs::File::create(archive)?);
        append(&mut whole, &named, configuration.as_bytes())?;
        append(&mut whole, "layer.tar", &layer)?;
        append(&mut whole, "manifest.json", manifest.to_string().as_bytes())?;
        whole.finish().context("the archive was not written")
    }

    fn layer(&self) -> anyhow::Result<Vec<u8>> {
        let mut layer = tar::Builder::new(Vec::new());
        for (folder, mode) in FOLDERS {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(tar::EntryType::Directory);
            header.set_mode(*mode);
            header.set_size(0);
            layer.append_data(&mut header, folder, std::io::empty())?;
        }
        for (inside, outside) in &self.files {
            let bytes = fs::read(outside).with_context(|| outside.display().to_string())?;
            append(&mut layer, inside.strip_prefix("/")?, &bytes)?;
        }
        layer.into_inner().context("the layer was not written")
    }
}

fn append<W: std::io::Write>(
    archive: &mut tar::Builder<W>,
    name: impl AsRef<Path>,
    bytes: &[u8],
) -> std::io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o755);
    header.set_size(bytes.len() as u64);
    archive.append_data(&mut header, name, bytes)
}

fn digest(bytes: &[u8]) -> String {
    let mut text = String::new();
    for byte in Sha256::digest(bytes) {
        write!(text, "{byte:02x}").expect("a text takes what is written");
    }
    text
}

/// What the loader finds for a program, where the program looks for it; nothing for a static one.
fn libraries(program: &Path) -> anyhow::Result<BTreeMap<PathBuf, PathBuf>> {
    let output = Command::new("ldd").arg(program).output().context("`ldd` was not run")?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(!text.contains("not found"), "`{}` lacks a library: {text}", program.display());
    Ok(listed(&text).map(|library| (library.clone(), library)).collect())
}

/// The paths in `libm.so.6 => /lib/libm.so.6 (0x…)` and `/lib64/ld-linux-x86-64.so.2 (0x…)`.
fn listed(text: &str) -> impl Iterator<Item = PathBuf> + '_ {
    let words =
        text.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    words.map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_read_from_what_the_loader_lists() {
        let text = "\tlinux-vdso.so.1 (0x00007)\n\tlibm.so.6 => /lib/libm.so.6 (0x00007)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007)\n";
        let expected = ["/lib/libm.so.6", "/lib64/ld-linux-x86-64.so.2"].map(PathBuf::from);
        assert_eq!(listed(text).collect::<Vec<_>>(), expected);
        assert_eq!(listed("\tstatically linked\n").count(), 0);
    }
}
