// core_3d_molecule/relational_projections.hpp - what leads from projections of [h; e] to relational_attention and back.
#pragma once
#include <core/tensor.hpp>

namespace core_3d_molecule {
/// From queries q + edge_q e and keys k + edge_k e of pairs with features e to what relational_attention reads.
///
/// q, k[A,H,D]; edge_q, edge_k[H,D,E]. scaled_q[A,H,D] = scale q; q_edge[A,H,E] = scale q edge_k; k_edge[A,H,E] =
/// scale k edge_q; form[H,E(E+1)/2]: the upper triangle of the symmetric part of scale edge_q^T edge_k, row by row, off
/// its diagonal twice. T is float or double.
/// Throws ValueError: sizes that do not fit.
template <class T>
CORE_EXPORT void relational_projections(core::Tensor<const T, 3> q, core::Tensor<const T, 3> k, core::Tensor<const T, 3> edge_q,
                                        core::Tensor<const T, 3> edge_k, double scale, core::Tensor<T, 3> scaled_q,
                                        core::Tensor<T, 3> q_edge, core::Tensor<T, 3> k_edge, core::Tensor<T, 2> form);

/// The gradients of the inputs of the same names. Sums over atoms do not depend on the number of threads.
template <class T>
CORE_EXPORT void relational_projections_backward(core::Tensor<const T, 3> q, core::Tensor<const T, 3> k, core::Tensor<const T, 3> edge_q,
                                                 core::Tensor<const T, 3> edge_k, double scale, core::Tensor<const T, 3> grad_scaled_q,
                                                 core::Tensor<const T, 3> grad_q_edge, core::Tensor<const T, 3> grad_k_edge,
                                                 core::Tensor<const T, 2> grad_form, core::Tensor<T, 3> grad_q, core::Tensor<T, 3> grad_k,
                                                 core::Tensor<T, 3> grad_edge_q, core::Tensor<T, 3> grad_edge_k);

/// values[A,H,D] = out + out_edge edge_v: the mean of values v + edge_v e, from the means of v and of e.
template <class T>
CORE_EXPORT void relational_values(core::Tensor<const T, 3> out, core::Tensor<const T, 3> out_edge, core::Tensor<const T, 3> edge_v,
                                   core::Tensor<T, 3> values);

/// The gradients of out_edge and edge_v; that of `out` is grad_values itself.
template <class T>
CORE_EXPORT void relational_values_backward(core::Tensor<const T, 3> out_edge, core::Tensor<const T, 3> edge_v,
                                            core::Tensor<const T, 3> grad_values, core::Tensor<T, 3> grad_out_edge,
                                            core::Tensor<T, 3> grad_edge_v);

/// The same on CUDA, in float32.
CORE_EXPORT void relational_projections_cuda(core::Tensor<const float, 3> q, core::Tensor<const float, 3> k,
                                             core::Tensor<const float, 3> edge_q, core::Tensor<const float, 3> edge_k, double scale,
                                             core::Tensor<float, 3> scaled_q, core::Tensor<float, 3> q_edge, core::Tensor<float, 3> k_edge,
                                             core::Tensor<float, 2> form, core::Stream stream);
CORE_EXPORT void relational_projections_backward_cuda(core::Tensor<const float, 3> q, core::Tensor<const float, 3> k,
                                                      core::Tensor<const float, 3> edge_q, core::Tensor<const float, 3> edge_k,
                                                      double scale, core::Tensor<const float, 3> grad_scaled_q,
                                                      core::Tensor<const float, 3> grad_q_edge, core::Tensor<const float, 3> grad_k_edge,
                                                      core::Tensor<const float, 2> grad_form, core::Tensor<float, 3> grad_q,
                                                      core::Tensor<float, 3> grad_k, core::Tensor<float, 3> grad_edge_q,
                                                      core::Tensor<float, 3> grad_edge_k, core::Stream stream);
CORE_EXPORT void relational_values_cuda(core::Tensor<const float, 3> out, core::Tensor<const float, 3> out_edge,
                                        core::Tensor<const float, 3> edge_v, core::Tensor<float, 3> values, core::Stream stream);
CORE_EXPORT void relational_values_backward_cuda(core::Tensor<const float, 3> out_edge, core::Tensor<const float, 3> edge_v,
                                                 core::Tensor<const float, 3> grad_values, core::Tensor<float, 3> grad_out_edge,
                                                 core::Tensor<float, 3> grad_edge_v, core::Stream stream);
}  // namespace core_3d_molecule
