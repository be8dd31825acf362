//! What a job is given beside its prompt: LoRA files, and a picture to begin with.

use super::Api;
use super::error::{ErrorType, Refusal};
use super::files::{FileBody, FileKind};
use super::limits::PICTURE_PIXELS_MAX;
use crate::actor::visit::Visit;
use crate::lora::{self, LoraError};
use crate::picture::{self, Picture};
use actix_web::http::StatusCode;
use actix_web::{HttpRequest, web};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use bytes::Bytes;
use protocol::job::{Field, FileDigest, InitWish, JobRequest, Lora, PICTURE_BYTES_MAX};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{Read as _, Seek as _};
use utoipa::ToSchema;

/// A LoRA file, whose changes of the model's weights are added for this image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = RequestLora)]
pub(crate) struct LoraBody {
    /// Its id, as `POST /v1/files` said it.
    #[schema(value_type = String, pattern = "^[0-9a-f]{64}$")]
    pub(crate) file: FileDigest,
    /// What its changes are multiplied by.
    #[serde(default = "one")]
    #[schema(minimum = -100, maximum = 100, default = 1.0)]
    pub(crate) scale: f32,
    /// What people call it: the image's parameters say so. Its id, if nothing is said.
    #[serde(default)]
    #[schema(max_length = 255)]
    pub(crate) name: Option<String>,
}

/// A picture to begin with, in place of noise alone. It is named, or sent along.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = RequestInit)]
pub(crate) struct InitBody {
    /// Its id, as `POST /v1/files` said it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, pattern = "^[0-9a-f]{64}$")]
    pub(crate) file: Option<FileDigest>,
    /// A PNG or JPEG in base64. An address that begins with `data:` is understood as well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) data: Option<String>,
    /// How much of it is changed: that part of the steps is taken.
    #[serde(default)]
    #[schema(exclusive_minimum = 0, maximum = 1)]
    pub(crate) strength: Option<f32>,
}

fn one() -> f32 {
    1.0
}

impl From<&Lora> for LoraBody {
    fn from(Lora { file, name, scale }: &Lora) -> Self {
        Self { file: *file, scale: *scale, name: Some(name.clone()) }
    }
}

impl From<&InitWish> for InitBody {
    fn from(init: &InitWish) -> Self {
        Self { file: Some(init.file), data: None, strength: init.strength }
    }
}

/// What a file turned out to be.
#[derive(Debug)]
pub(super) enum Judged {
    Picture(Picture),
    Lora,
}

/// Where a file is that nobody knows yet.
#[derive(Debug)]
pub(super) enum Source {
    /// On the disk, so many bytes long.
    File(File, u64),
    Bytes(Vec<u8>),
}

/// A job that has all its files, which stay at least as long as this does.
#[derive(Debug)]
pub(crate) struct Given {
    pub(crate) request: JobRequest,
    _visit: Visit,
}

/// A file that is not there, or not any more.
pub(super) fn unknown(file: FileDigest) -> Refusal {
    let message = format!(
        "the file {file} is not here: it was never sent, or let go of since; send it again with POST /v1/files"
    );
    Refusal::not_found("unknown_file", message)
}

impl Api {
    /// `asked`, rendered with these files.
    pub(crate) async fn give(
        &self,
        request: &HttpRequest,
        asked: JobRequest,
        (loras, init): (Vec<LoraBody>, Option<InitBody>),
    ) -> Result<Given, Refusal> {
        let visit = self.visit(request);
        let mut given = Vec::new();
        for (number, LoraBody { file, scale, name }) in loras.into_iter().enumerate() {
            let at = format!("loras[{number}].file");
            self.wanted(&visit, (file, FileKind::Lora), (Field::Loras, &at)).await?;
            given.push(Lora { file, name: name.unwrap_or_else(|| file.to_string()), scale });
        }
        let init = match init {
            Some(init) => Some(self.wish(&visit, init).await?),
            None => None,
        };
        let request = JobRequest { loras: given, init, ..asked };
        Ok(Given { request, _visit: visit })
    }

    async fn wish(&self, visit: &Visit, init: InitBody) -> Result<InitWish, Refusal> {
        let strength = init.strength;
        match (init.file, init.data) {
            (Some(file), None) => {
                let at = (Field::Init, "init.file");
                let FileBody { width, height, .. } =
                    self.wanted(visit, (file, FileKind::Picture), at).await?;
                let (width, height) = width.zip(height).unwrap_or_default();
                Ok(InitWish { file, width, height, strength })
            }
            (None, Some(data)) => {
                let wrong = |cause: String| Refusal::invalid(cause).at(Field::Init, "init.data");
                let bytes = decoded(&data).map_err(wrong)?;
                let judged = self.judge(Source::Bytes(bytes)).await;
                match judged.map_err(|refusal| refusal.at(Field::Init, "init.data"))? {
                    Judged::Picture(Picture { png, width, height }) => {
                        let file = self.coordinator.keep_file(visit, Bytes::from(png)).await?;
                        Ok(InitWish { file, width, height, strength })
                    }
                    Judged::Lora => {
                        Err(wrong("init.data is a LoRA file, and no picture".to_owned()))
                    }
                }
            }
            (None, None) | (Some(_), Some(_)) => {
                let message = "init has either `file`, the id of a picture that was sent with POST /v1/files, or `data`, \
                               a picture in base64";
                Err(Refusal::invalid(message).field(Field::Init))
            }
        }
    }

    /// A file that is there and of this kind; it stays for as long as the visit does.
    async fn wanted(
        &self,
        visit: &Visit,
        (id, kind): (FileDigest, FileKind),
        (field, at): (Field, &str),
    ) -> Result<FileBody, Refusal> {
        let there = self.coordinator.wants_file(visit, id).await;
        let file = if there { self.file(id).await? } else { None };
        let Some(file) = file else {
            let (status, kind) = (StatusCode::BAD_REQUEST, ErrorType::InvalidRequestError);
            let unknown = unknown(id);
            return Err(Refusal::new(status, kind, &unknown.code, unknown.message).at(field, at));
        };
        if file.kind == kind {
            return Ok(file);
        }
        let message = match file.kind {
            FileKind::Lora => format!("the file {id} is a LoRA, and no picture to begin with"),
            FileKind::Picture => format!("the file {id} is a picture, and no LoRA"),
        };
        Err(Refusal::invalid(message).at(field, at))
    }

    /// Says what a file is, if it is anything that can be used.
    pub(super) async fn judge(&self, source: Source) -> Result<Judged, Refusal> {
        // One after the other: a picture's pixels take a hundred times the memory of its file.
        let _turn = self.judging.acquire().await.map_err(|_| Refusal::hung_up())?;
        let judging = web::block(move || judge(source));
        let judged = judging.await.map_err(|error| Refusal::internal(error.to_string()))?;
        judged.map_err(Refusal::invalid)
    }
}

fn judge(source: Source) -> Result<Judged, String> {
    let bytes = match source {
        Source::Bytes(bytes) => bytes,
        Source::File(mut file, length) => {
            let unreadable = |error: std::io::Error| format!("the file cannot be read: {error}");
            let mut head = Vec::new();
            (&mut file).take(16).read_to_end(&mut head).map_err(unreadable)?;
            file.rewind().map_err(unreadable)?;
            if !picture::is_picture(&head) {
                return judge_lora(file, length);
            }
            if length > PICTURE_BYTES_MAX {
                return Err(format!(
                    "the picture has {length} bytes; at most {PICTURE_BYTES_MAX} are taken"
                ));
            }
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes).map_err(unreadable)?;
            bytes
        }
    };
    if !picture::is_picture(&bytes) {
        return judge_lora(&bytes[..], bytes.len() as u64);
    }
    let picture = Picture::read_within(&bytes, PICTURE_PIXELS_MAX);
    picture.map(Judged::Picture).map_err(|error| format!("the picture cannot be used: {error}"))
}

fn judge_lora(file: impl std::io::Read, length: u64) -> Result<Judged, String> {
    match lora::check(file, length) {
        Ok(()) => Ok(Judged::Lora),
        Err(LoraError::Kind) => Err(
            "the file is neither a picture, PNG or JPEG, nor safetensors as LoRA files are: pickled .pt and .ckpt files are \
             not read, convert them"
                .to_owned(),
        ),
        Err(error) => Err(format!("the LoRA file cannot be used: {error}")),
    }
}

/// The bytes of a text in base64, which may be an address with data in it.
pub(super) fn decoded(text: &str) -> Result<Vec<u8>, String> {
    let data = match text.strip_prefix("data:") {
        Some(address) => address.split_once(";base64,").map(|(_, data)| data),
        None => Some(text),
    };
    let wrong = |cause: String| format!("the picture is not in base64: {cause}");
    let data = data.ok_or_else(|| wrong("its address has no `;base64,`".to_owned()))?;
    BASE64_STANDARD.decode(data.trim()).map_err(|error| wrong(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_may_be_an_address() {
        assert_eq!(decoded("YWJj"), Ok(b"abc".to_vec()));
        assert_eq!(decoded("data:image/png;base64,YWJj"), Ok(b"abc".to_vec()));
        for wrong in ["data:image/png,abc", "a", "/tmp/picture.png"] {
            assert!(decoded(wrong).unwrap_err().contains("base64"), "{wrong}");
        }
    }

    #[test]
    fn what_is_neither_is_refused_with_both_named() {
        let refused = judge(Source::Bytes(b"GIF89a".to_vec())).unwrap_err();
        assert!(refused.contains("JPEG") && refused.contains("safetensors"), "{refused}");
        let cut = judge(Source::Bytes(b"\x89PNG\r\n\x1a\n".to_vec())).unwrap_err();
        assert!(cut.contains("no whole PNG"), "{cut}");
        let empty = [&2_u64.to_le_bytes()[..], b"{}"].concat();
        assert!(matches!(judge(Source::Bytes(empty)), Ok(Judged::Lora)));
    }
}
