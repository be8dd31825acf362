//! cuDNN's convolution on channels-last images. candle's own is channels-first, and adds up halves in
//! half precision; this one adds up in f32, and in f32 without TF32's rounding.

#![expect(unsafe_code, reason = "a launch trusts the shapes it is described with")]

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::cudnn::{
    ConvForward, Cudnn, CudnnDataType,
    sys::{cudnnConvolutionMode_t, cudnnMathType_t, cudnnTensorFormat_t},
};
use candle_core::cuda_backend::cudarc::driver::{DeviceRepr, ValidAsZeroBits};
use candle_core::cuda_backend::{CudaDType, CudaDevice, CudaStorage, DeviceId};
use candle_core::{CpuStorage, CustomOp2, DType, Error, Layout, Result, Shape, WithDType, bail};
use half::{bf16, f16};
use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

const FORMAT: cudnnTensorFormat_t = cudnnTensorFormat_t::CUDNN_TENSOR_NHWC;

thread_local! {
    // A handle may be used by one thread at a time, and takes milliseconds to make.
    static HANDLES: RefCell<HashMap<DeviceId, Arc<Cudnn>>> = RefCell::default();
}

fn handle(device: &CudaDevice) -> Result<Arc<Cudnn>> {
    HANDLES.with(|handles| {
        if let Some(handle) = handles.borrow().get(&device.id()) {
            return Ok(Arc::clone(handle));
        }
        let handle = Cudnn::new(device.cuda_stream()).map_err(Error::wrap)?;
        handles.borrow_mut().insert(device.id(), Arc::clone(&handle));
        Ok(handle)
    })
}

/// The convolution of an image [batch, rows + 2, columns + 2, inputs] with [outputs, 3, 3, inputs].
pub(super) struct Conv3x3 {
    pub(super) stride: usize,
}

impl CustomOp2 for Conv3x3 {
    fn name(&self) -> &'static str {
        "conv3x3-channels-last"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        bail!("{} is for GPUs", self.name())
    }

    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        x_layout: &Layout,
        weight: &CudaStorage,
        weight_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let given = ((x, x_layout), (weight, weight_layout));
        match x.dtype() {
            DType::F16 => self.launch::<f16>(given),
            DType::BF16 => self.launch::<bf16>(given),
            DType::F32 => self.launch::<f32>(given),
            other => bail!("{} of {other:?}", self.name()),
        }
    }
}

type Given<'a> = (&'a CudaStorage, &'a Layout);

impl Conv3x3 {
    fn launch<T>(
        &self,
        ((x, x_layout), (weight, weight_layout)): (Given<'_>, Given<'_>),
    ) -> Result<(CudaStorage, Shape)>
    where
        T: WithDType + CudaDType + CudnnDataType + DeviceRepr + ValidAsZeroBits,
    {
        let (Some((x_from, x_to)), Some((weight_from, weight_to))) =
            (x_layout.contiguous_offsets(), weight_layout.contiguous_offsets())
        else {
            bail!("{} of values that are not contiguous", self.name());
        };
        let (batch, rows, columns, inputs) = x_layout.shape().dims4()?;
        let (outputs, height, width, depth) = weight_layout.shape().dims4()?;
        if [height, width, depth] != [3, 3, inputs] || rows < 3 || columns < 3 || self.stride == 0 {
            bail!("{} of {:?} and {:?}", self.name(), x_layout.shape(), weight_layout.shape());
        }
        let (out_rows, out_columns) =
            ((rows - 3) / self.stride + 1, (columns - 3) / self.stride + 1);
        let device = x.device();
        let cudnn = handle(device)?;
        // cuDNN names dimensions channels-first, whatever their order in memory.
        let of = |shape: [usize; 4]| -> Result<[i32; 4]> {
            let size = |size: usize| i32::try_from(size).map_err(Error::wrap);
            Ok([size(shape[0])?, size(shape[1])?, size(shape[2])?, size(shape[3])?])
        };
        let stride = i32::try_from(self.stride).map_err(Error::wrap)?;
        let mut conv = cudnn
            .create_conv2d::<f32>(
                [0, 0],
                [stride, stride],
                [1, 1],
                cudnnConvolutionMode_t::CUDNN_CROSS_CORRELATION,
            )
            .map_err(Error::wrap)?;
        let math = if T::DTYPE == DType::F32 {
            cudnnMathType_t::CUDNN_FMA_MATH
        } else {
            cudnnMathType_t::CUDNN_TENSOR_OP_MATH
        };
        conv.set_math_type(math).map_err(Error::wrap)?;
        let x_described = cudnn
            .create_4d_tensor::<T>(FORMAT, of([batch, inputs, rows, columns])?)
            .map_err(Error::wrap)?;
        let w_described = cudnn
            .create_4d_filter::<T>(FORMAT, of([outputs, inputs, 3, 3])?)
            .map_err(Error::wrap)?;
        let y_described = cudnn
            .create_4d_tensor::<T>(FORMAT, of([batch, outputs, out_rows, out_columns])?)
            .map_err(Error::wrap)?;
        let forward =
            ConvForward { conv: &conv, x: &x_described, w: &w_described, y: &y_described };
        let algorithm = forward.pick_algorithm().map_err(Error::wrap)?;
        let room = forward.get_workspace_size(algorithm).map_err(Error::wrap)?;
        // SAFETY: cuDNN writes before it reads what it takes for itself.
        let mut workspace = unsafe { device.alloc::<u8>(room.max(1)) }?;
        // SAFETY: the launch writes every value of its result.
        let mut y = unsafe { device.alloc::<T>(batch * out_rows * out_columns * outputs) }?;
        let x = x.as_cuda_slice::<T>()?.slice(x_from..x_to);
        let weight = weight.as_cuda_slice::<T>()?.slice(weight_from..weight_to);
        // SAFETY: all three are contiguous, of the type and the number of values described; `workspace`
        // is as large as was asked for.
        unsafe {
            forward.launch(
                algorithm,
                Some(&mut workspace),
                (T::one(), T::zero()),
                &x,
                &weight,
                &mut y,
            )
        }
        .map_err(Error::wrap)?;
        let shape = Shape::from((batch, out_rows, out_columns, outputs));
        Ok((CudaStorage::wrap_cuda_slice(y, device.clone()), shape))
    }
}
