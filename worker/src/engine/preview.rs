//! How a model's latents look before they are decoded: learnt once from its decoder, and kept in this user's cache.

use crate::model::Result;
use crate::model::checkpoint::Checkpoint;
use crate::model::tensor::Memory;
use protocol::job::{ModelCard, PreviewMap};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

/// Goes up with whatever changes what is learnt: files of other versions are not looked at.
const VERSION: u32 = 1;

/// The map of `checkpoint`, whose decoder computes in `memory`; None if no numbers come of that.
pub(super) fn map(checkpoint: &Checkpoint, memory: &Memory) -> Result<Option<PreviewMap>> {
    let folder = folder();
    if folder.is_none() {
        tracing::info!(
            "previews are learnt from the decoder at every start: set XDG_CACHE_HOME or HOME to keep that"
        );
    }
    kept(folder.as_deref(), checkpoint.card(), || checkpoint.vae().preview(memory))
}

/// `$XDG_CACHE_HOME/tessera/previews` or `~/.cache/tessera/previews`.
fn folder() -> Option<PathBuf> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    let cache = variable("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| Some(Path::new(&variable("HOME")?).join(".cache")));
    cache.map(|cache| cache.join("tessera/previews"))
}

/// What `folder` holds of the model of this card, or what `learn` gives, which is then left there. A file that is
/// damaged is replaced; one that cannot be written costs the next start the time again, and nothing else.
fn kept(
    folder: Option<&Path>,
    card: &ModelCard,
    learn: impl FnOnce() -> Result<Option<PreviewMap>>,
) -> Result<Option<PreviewMap>> {
    let path = folder.map(|folder| folder.join(format!("{}-{VERSION}.json", card.digest)));
    match path.as_deref().map(|path| read(path, card)) {
        Some(Ok(Some(map))) => return Ok(Some(map)),
        Some(Err(cause)) => tracing::warn!("previews are learnt from the decoder again: {cause}"),
        Some(Ok(None)) | None => {}
    }
    let map = learn()?;
    match &map {
        None => tracing::warn!(
            "there are no previews: {}'s decoder gives no numbers to learn them from",
            card.name
        ),
        Some(map) => {
            if let Some(path) = path
                && let Err(error) = write(&path, map)
            {
                let path = path.display();
                tracing::warn!(
                    "cannot keep how previews look in {path}: {error}; they are learnt at every start"
                );
            }
        }
    }
    Ok(map)
}

/// The map in the file at `path`; None if there is no file.
fn read(path: &Path, card: &ModelCard) -> std::result::Result<Option<PreviewMap>, String> {
    let damaged = |cause: String| format!("{}: {cause}", path.display());
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(damaged(error.to_string())),
    };
    let map: PreviewMap =
        serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?;
    map.check(card.latent_channels).map_err(|error| damaged(error.to_string()))?;
    Ok(Some(map))
}

/// Writes the file whole or not at all: other workers start at the same time.
fn write(path: &Path, map: &PreviewMap) -> io::Result<()> {
    let folder = path.parent().unwrap_or_else(|| Path::new("."));
    std::fs::create_dir_all(folder)?;
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(&serde_json::to_vec(map)?)?;
    file.persist(path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Error;
    use crate::model::files::ModelFiles;
    use protocol::job::Dtype;
    use std::os::unix::fs::PermissionsExt;

    fn card() -> ModelCard {
        let golden =
            concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/golden/models/tiny-sdxl");
        let checkpoint = Checkpoint::load(&ModelFiles::Folder(golden.into()), Dtype::Auto).unwrap();
        checkpoint.card().clone()
    }

    fn of(value: f32) -> PreviewMap {
        PreviewMap { weights: vec![[0.1, value, -0.3]; 4], offset: [0.5, value, 1.0 / 3.0] }
    }

    fn not_asked() -> Result<Option<PreviewMap>> {
        Err(Error::Shape("it was learnt again".to_owned()))
    }

    #[test]
    fn what_was_learnt_is_kept_to_the_bit_for_its_model_alone() {
        let (home, card) = (tempfile::tempdir().unwrap(), card());
        let folder = home.path().join("not/there/yet");
        let learnt = kept(Some(&folder), &card, || Ok(Some(of(0.7)))).unwrap();
        assert_eq!(learnt, Some(of(0.7)));
        assert_eq!(kept(Some(&folder), &card, not_asked).unwrap(), learnt);
        let other = ModelCard { digest: "cd".repeat(32), ..card };
        assert!(kept(Some(&folder), &other, not_asked).is_err());
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1, "a temporary file is left");
    }

    #[test]
    fn a_damaged_file_is_learnt_again_and_replaced() {
        let (home, card) = (tempfile::tempdir().unwrap(), card());
        let path = home.path().join(format!("{}-{VERSION}.json", card.digest));
        let few = r#"{"weights":[[1,2,3]],"offset":[0,0,0]}"#;
        let text = serde_json::to_string(&of(0.7)).unwrap();
        let not_numbers = text.replacen("0.7", "null", 1);
        for damaged in ["", "{", &text[..text.len() / 2], few, &not_numbers, "\u{0}\u{0}"] {
            std::fs::write(&path, damaged).unwrap();
            let learnt = kept(Some(home.path()), &card, || Ok(Some(of(0.2)))).unwrap();
            assert_eq!(learnt, Some(of(0.2)), "{damaged:?}");
            assert_eq!(kept(Some(home.path()), &card, not_asked).unwrap(), learnt, "{damaged:?}");
        }
    }

    #[test]
    fn without_a_folder_that_can_be_written_it_is_learnt_each_time() {
        let (home, card) = (tempfile::tempdir().unwrap(), card());
        let file = home.path().join("file");
        std::fs::write(&file, "").unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o400)).unwrap();
        for folder in [None, Some(file.join("folder"))] {
            for _ in 0..2 {
                let learnt = kept(folder.as_deref(), &card, || Ok(Some(of(0.7)))).unwrap();
                assert_eq!(learnt, Some(of(0.7)));
            }
        }
        assert_eq!(kept(Some(home.path()), &card, || Ok(None)).unwrap(), None);
    }
}
