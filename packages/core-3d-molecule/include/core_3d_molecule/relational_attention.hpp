// core_3d_molecule/relational_attention.hpp - attention among the atoms of a molecule with features of every pair.
#pragma once
#include <core/tensor.hpp>

namespace core_3d_molecule {
/// The most atoms of one molecule.
constexpr std::int64_t relational_attention_atoms = 1024;

/// Attention whose queries, keys and values see the features of the pair (R-Trans of arXiv 2503.15567), which are made
/// on the fly. A atoms in B molecules, H heads of D channels, E channels of a pair, T is float or double; every atom
/// attends to every atom of its molecule, itself included.
///
/// The features of a pair are a two-layer perceptron of its squared distance s and its bond:
/// x = [s, exp(-((s - centres) / widths)^2 / 2), one_hot(bond)] (I of them), e = w2 silu(w1 x + b1) + b2, and
/// logit[i,j,h] = q[i,h] k[j,h] + (q_edge[i,h] + k_edge[j,h]) e + sum_{a<=b} form[h,ab] e_a e_b,
/// the products of the upper triangle row by row. With queries W_q [h_i; e] and keys W_k [h_j; e], q_edge is the edge
/// half of W_k, transposed, times q; k_edge that of W_q times k; form the product of both edge halves.
///
/// q, k, v[A,H,D] (the scale of the softmax is the caller's); q_edge, k_edge[A,H,E]; form[H,E(E+1)/2];
/// positions[A,3]; bonds[P]: n x n bond classes, symmetric, molecule after molecule; offsets[B+1] ascends from 0 to A;
/// centres[G], widths[G] above 0; w1[F,I], I = 1 + G + the number of classes; b1[F]; w2[E,F]; b2[E].
/// out[A,H,D]: the mean of v[j] with the weights softmax_j(logit); out_edge[A,H,E]: that of e; lse[A,H]: the logarithm
/// of the sum of exp(logit). NaN stays within its molecule. The same for any number of threads.
/// Throws ValueError: offsets, sizes of `bonds`, `w1` or `form` that do not fit, an unknown class, bonds that are not
/// symmetric, widths that are not above 0, more than 1,024 atoms in a molecule.
template <class T>
CORE_EXPORT void relational_attention(core::Tensor<const T, 3> q, core::Tensor<const T, 3> k, core::Tensor<const T, 3> v,
                                      core::Tensor<const T, 3> q_edge, core::Tensor<const T, 3> k_edge, core::Tensor<const T, 2> form,
                                      core::Tensor<const T, 2> positions, core::Tensor<const std::uint8_t, 1> bonds,
                                      core::Tensor<const std::int64_t, 1> offsets, core::Tensor<const T, 1> centres,
                                      core::Tensor<const T, 1> widths, core::Tensor<const T, 2> w1, core::Tensor<const T, 1> b1,
                                      core::Tensor<const T, 2> w2, core::Tensor<const T, 1> b2, core::Tensor<T, 3> out,
                                      core::Tensor<T, 3> out_edge, core::Tensor<T, 2> lse);

/// The gradients of the inputs of the same names, from what the forward call gave and the gradients of that.
/// Throws as the forward call.
template <class T>
CORE_EXPORT void relational_attention_backward(
    core::Tensor<const T, 3> q, core::Tensor<const T, 3> k, core::Tensor<const T, 3> v, core::Tensor<const T, 3> q_edge,
    core::Tensor<const T, 3> k_edge, core::Tensor<const T, 2> form, core::Tensor<const T, 2> positions,
    core::Tensor<const std::uint8_t, 1> bonds, core::Tensor<const std::int64_t, 1> offsets, core::Tensor<const T, 1> centres,
    core::Tensor<const T, 1> widths, core::Tensor<const T, 2> w1, core::Tensor<const T, 1> b1, core::Tensor<const T, 2> w2,
    core::Tensor<const T, 1> b2, core::Tensor<const T, 3> out, core::Tensor<const T, 3> out_edge, core::Tensor<const T, 2> lse,
    core::Tensor<const T, 3> grad_out, core::Tensor<const T, 3> grad_out_edge, core::Tensor<const T, 2> grad_lse, core::Tensor<T, 3> grad_q,
    core::Tensor<T, 3> grad_k, core::Tensor<T, 3> grad_v, core::Tensor<T, 3> grad_q_edge, core::Tensor<T, 3> grad_k_edge,
    core::Tensor<T, 2> grad_form, core::Tensor<T, 2> grad_positions, core::Tensor<T, 1> grad_centres, core::Tensor<T, 1> grad_widths,
    core::Tensor<T, 2> grad_w1, core::Tensor<T, 1> grad_b1, core::Tensor<T, 2> grad_w2, core::Tensor<T, 1> grad_b2);

/// The same on CUDA, in float32, for at most 16 heads, 32 channels, 16 channels of a pair and 32 rows of w1 (on the matrix units,
/// and fast, for 8, 8, 16 and 16, at most 15 Gaussians and 8 bond classes). Values of offsets and bonds are read on the device only: where
/// they do not fit, results are NaN.
CORE_EXPORT void relational_attention_cuda(core::Tensor<const float, 3> q, core::Tensor<const float, 3> k, core::Tensor<const float, 3> v,
                                           core::Tensor<const float, 3> q_edge, core::Tensor<const float, 3> k_edge,
                                           core::Tensor<const float, 2> form, core::Tensor<const float, 2> positions,
                                           core::Tensor<const std::uint8_t, 1> bonds, core::Tensor<const std::int64_t, 1> offsets,
                                           core::Tensor<const float, 1> centres, core::Tensor<const float, 1> widths,
                                           core::Tensor<const float, 2> w1, core::Tensor<const float, 1> b1,
                                           core::Tensor<const float, 2> w2, core::Tensor<const float, 1> b2, core::Tensor<float, 3> out,
                                           core::Tensor<float, 3> out_edge, core::Tensor<float, 2> lse, core::Stream stream);
CORE_EXPORT void relational_attention_backward_cuda(
    core::Tensor<const float, 3> q, core::Tensor<const float, 3> k, core::Tensor<const float, 3> v, core::Tensor<const float, 3> q_edge,
    core::Tensor<const float, 3> k_edge, core::Tensor<const float, 2> form, core::Tensor<const float, 2> positions,
    core::Tensor<const std::uint8_t, 1> bonds, core::Tensor<const std::int64_t, 1> offsets, core::Tensor<const float, 1> centres,
    core::Tensor<const float, 1> widths, core::Tensor<const float, 2> w1, core::Tensor<const float, 1> b1, core::Tensor<const float, 2> w2,
    core::Tensor<const float, 1> b2, core::Tensor<const float, 3> out, core::Tensor<const float, 3> out_edge,
    core::Tensor<const float, 2> lse, core::Tensor<const float, 3> grad_out, core::Tensor<const float, 3> grad_out_edge,
    core::Tensor<const float, 2> grad_lse, core::Tensor<float, 3> grad_q, core::Tensor<float, 3> grad_k, core::Tensor<float, 3> grad_v,
    core::Tensor<float, 3> grad_q_edge, core::Tensor<float, 3> grad_k_edge, core::Tensor<float, 2> grad_form,
    core::Tensor<float, 2> grad_positions, core::Tensor<float, 1> grad_centres, core::Tensor<float, 1> grad_widths,
    core::Tensor<float, 2> grad_w1, core::Tensor<float, 1> grad_b1, core::Tensor<float, 2> grad_w2, core::Tensor<float, 1> grad_b2,
    core::Stream stream);
}  // namespace core_3d_molecule
